"""Reproducible training with keyed randomness."""
