"""The command line of ``dtrak``."""
