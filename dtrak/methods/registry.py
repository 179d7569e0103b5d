"""All attribution methods, in display order."""

from dtrak.methods import (
    checkpoints,
    control,
    ensembles,
    exact,
    imported,
    influence,
    journey,
    kfac,
    retrained,
    similarity,
    unlearning,
)
from dtrak.methods.base import Method
from dtrak.utils.errors import DtrakError

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        *influence.METHODS,
        *kfac.METHODS,
        *checkpoints.METHODS,
        *journey.METHODS,
        *ensembles.METHODS,
        influence.DAS,
        *similarity.METHODS,
        *exact.METHODS,
        *unlearning.METHODS,
        *imported.METHODS,
        *retrained.METHODS,
        *control.METHODS,
    )
}


def get_method(name: str) -> Method:
    """The method of that name.

    Raises:
        DtrakError: there is no such method.
    """
    if name not in METHODS:
        raise DtrakError(f"There is no method '{name}'.", hint=f"Methods: {', '.join(METHODS)}.")
    return METHODS[name]
