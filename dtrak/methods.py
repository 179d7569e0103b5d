"""Attribution methods, each a short composition over the same feature stores.

A method is (output function, damping or none): the train side is the store of its output
function, the query side the same feature, and the preconditioner the kernel at that damping.
"""

from dataclasses import dataclass

from dtrak.errors import DtrakError


@dataclass(frozen=True)
class Method:
    """One way to score training samples for a query.

    Attributes:
        name: on the command line and in URLs.
        title: as people read it.
        output: the output function of its features.
        damping: the default λ, relative to the kernel's mean non-zero eigenvalue.
        formula: for the page.
        source: the paper.
    """

    name: str
    title: str
    output: str
    damping: float
    formula: str
    source: str


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
