"""The offline side: a command line over ``dtrak``, and what its engines are given to do."""
