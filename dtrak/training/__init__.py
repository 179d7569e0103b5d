"""Keyed training that can be replayed."""
