"""Errors, atomic files, keyed randomness, caches, text."""
