"""Errors, files, keyed randomness, text."""
