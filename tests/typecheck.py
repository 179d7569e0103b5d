"""How annotations are checked in the tests: an int may stand for a float, as type checkers say."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
