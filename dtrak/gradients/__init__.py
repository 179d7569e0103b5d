"""Features: output functions, vector–Jacobian products, per-row gradients, projection."""
