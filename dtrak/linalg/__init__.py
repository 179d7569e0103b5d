"""The kernel (ΦᵀΦ + λI)⁻¹ for every λ."""
