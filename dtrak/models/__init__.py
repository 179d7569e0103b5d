"""Diffusion models as attribution sees them, loading and sampling."""
