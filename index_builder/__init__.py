"""The offline side: a command line over ``dtrak``, and the engine that spreads its work."""
