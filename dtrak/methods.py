"""Attribution methods, each a short composition over the same feature stores.

A method is (output function, preconditioner, row normaliser): the train side is the store of its
output function, the query side the same feature, the preconditioner the kernel at some damping or
the identity, and each score may be divided by a norm that belongs to its training row. Formulas as
in Zheng et al. (ICLR 2024) and the papers named with each.
"""

from dataclasses import dataclass
from typing import Literal

from dtrak.errors import DtrakError


@dataclass(frozen=True)
class Method:
    """One way to score training samples for a query.

    Attributes:
        name: on the command line and in URLs.
        title: as people read it.
        output: the output function of its features.
        damping: the default λ, relative to the kernel's mean non-zero eigenvalue; None for no kernel.
        normaliser: what a score is divided by: nothing, ‖φₙ‖, ‖(ΦᵀΦ + λI)⁻¹ φₙ‖ ("influence"), or
            ‖φₙ‖ ‖φ(x)‖ ("cosine").
        formula: for the page.
        source: the paper.
    """

    name: str
    title: str
    output: str
    damping: float | None
    formula: str
    source: str
    normaliser: Literal["none", "norm", "influence", "cosine"] = "none"


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            name="dtrak",
            title="D-TRAK",
            output="mean-squared-l2-norm",
            damping=0.1,
            formula="τ(x, n) = φ(x)ᵀ (ΦᵀΦ + λI)⁻¹ φₙ,  φ = P ∇_θ ‖ε_θ‖² / D",
            source="Zheng et al., ICLR 2024 (arXiv 2311.00500)",
        ),
        Method(
            name="trak",
            title="TRAK",
            output="loss",
            damping=100.0,
            formula="τ(x, n) = φ(x)ᵀ (ΦᵀΦ + λI)⁻¹ φₙ,  φ = P ∇_θ ‖ε_θ − ε‖² / D",
            source="Park et al., ICML 2023 (arXiv 2303.14186), for diffusion as in Zheng et al.",
        ),
        Method(
            name="grad-dot",
            title="Gradient dot",
            output="loss",
            damping=None,
            formula="τ(x, n) = φ(x)ᵀ φₙ,  φ of the loss",
            source="Charpiat et al., NeurIPS 2019",
        ),
        Method(
            name="grad-cos",
            title="Gradient cosine",
            output="loss",
            damping=None,
            formula="τ(x, n) = φ(x)ᵀ φₙ / (‖φ(x)‖ ‖φₙ‖),  φ of the loss",
            source="Charpiat et al., NeurIPS 2019",
            normaliser="cosine",
        ),
        Method(
            name="relative-if",
            title="Relative IF",
            output="loss",
            damping=100.0,
            formula="τ(x, n) = φ(x)ᵀ (ΦᵀΦ + λI)⁻¹ φₙ / ‖(ΦᵀΦ + λI)⁻¹ φₙ‖,  φ of the loss",
            source="Barshan et al., AISTATS 2020",
            normaliser="influence",
        ),
        Method(
            name="renormalised-if",
            title="Renormalised IF",
            output="loss",
            damping=100.0,
            formula="τ(x, n) = φ(x)ᵀ (ΦᵀΦ + λI)⁻¹ φₙ / ‖φₙ‖,  φ of the loss",
            source="Hammoudeh & Lowd, CCS 2022",
            normaliser="norm",
        ),
    )
}


def get_method(name: str) -> Method:
    """The method of that name.

    Raises:
        DtrakError: there is none.
    """
    if name not in METHODS:
        raise DtrakError(f"There is no method '{name}'.", hint=f"Methods: {', '.join(METHODS)}.")
    return METHODS[name]
