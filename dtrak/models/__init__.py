"""Diffusion models: the interface that attribution uses, loading and sampling."""
