"""Features: output functions, vector–Jacobian products, per-sample gradients, projection."""
