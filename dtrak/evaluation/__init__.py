"""Evaluation of attribution methods against retrained models."""
