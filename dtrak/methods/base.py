"""Attribution methods, each a short composition over the same feature stores.

A method is (features of the train side, features of the query side, preconditioner, row normaliser):
the train side is a store of its output function, the query side the same feature (or one along the
sampling trajectory), the preconditioner the kernel at some damping or the identity, and each score
may be divided by a norm that belongs to its training row; with several models, scores are averaged.
Methods of other families compare images, or read the truth of retrained models. Formulas as in
Zheng et al. (ICLR 2024) and the papers named with each.
"""

from dataclasses import dataclass
from typing import Literal

from dtrak.utils.errors import DtrakError

Normaliser = Literal["none", "norm", "influence", "cosine"]
Family = Literal["gradient", "pixel", "embedding", "truth", "random"]


@dataclass(frozen=True)
class Method:
    """One way to score training samples for a query.

    Attributes:
        name: on the command line and in URLs.
        title: as people read it.
        formula: for the page.
        source: the paper.
        output: the output function of its features; empty for methods that use no gradient.
        damping: the default λ, relative to the kernel's mean non-zero eigenvalue; None for no kernel.
        normaliser: what a score is divided by: nothing, ‖φₙ‖, ‖(ΦᵀΦ + λI)⁻¹ φₙ‖ ("influence"), or
            ‖φₙ‖ ‖φ(x)‖ ("cosine").
        family: what is compared: gradients, pixels, embeddings, the truth, or nothing.
        models: the last checkpoint (or one that is chosen), all checkpoints, or the ensemble's members
            beside the last checkpoint; scores are averaged over them.
        trajectory: whether the query is looked at along the path it was sampled by.
        residual: whether DAS's residual and leverage terms enter.
    """

    name: str
    title: str
    formula: str
    source: str
    output: str = ""
    damping: float | None = None
    normaliser: Normaliser = "none"
    family: Family = "gradient"
    models: Literal["one", "checkpoints", "ensemble"] = "one"
    trajectory: bool = False
    residual: bool = False


LOSS, SQUARE = "loss", "mean-squared-l2-norm"
PARK = "Park et al., ICML 2023 (arXiv 2303.14186), for diffusion as in Zheng et al."
ZHENG = "Zheng et al., ICLR 2024 (arXiv 2311.00500)"

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            name="dtrak",
            title="D-TRAK",
            output=SQUARE,
            damping=0.316,
            formula="τ(x, n) = φ(x)ᵀ (ΦᵀΦ + λI)⁻¹ φₙ,  φ = P ∇_θ ‖ε_θ‖² / D",
            source=ZHENG,
        ),
        Method(
            name="trak",
            title="TRAK",
            output=LOSS,
            damping=3.16,
            formula="τ(x, n) = φ(x)ᵀ (ΦᵀΦ + λI)⁻¹ φₙ,  φ = P ∇_θ ‖ε_θ − ε‖² / D",
            source=PARK,
        ),
        Method(
            name="grad-dot",
            title="Gradient dot",
            output=LOSS,
            formula="τ(x, n) = φ(x)ᵀ φₙ,  φ of the loss",
            source="Charpiat et al., NeurIPS 2019",
        ),
        Method(
            name="grad-cos",
            title="Gradient cosine",
            output=LOSS,
            formula="τ(x, n) = φ(x)ᵀ φₙ / (‖φ(x)‖ ‖φₙ‖),  φ of the loss",
            source="Charpiat et al., NeurIPS 2019",
            normaliser="cosine",
        ),
        Method(
            name="relative-if",
            title="Relative IF",
            output=LOSS,
            damping=3.16,
            formula="τ(x, n) = φ(x)ᵀ (ΦᵀΦ + λI)⁻¹ φₙ / ‖(ΦᵀΦ + λI)⁻¹ φₙ‖,  φ of the loss",
            source="Barshan et al., AISTATS 2020",
            normaliser="influence",
        ),
        Method(
            name="renormalised-if",
            title="Renormalised IF",
            output=LOSS,
            damping=3.16,
            formula="τ(x, n) = φ(x)ᵀ (ΦᵀΦ + λI)⁻¹ φₙ / ‖φₙ‖,  φ of the loss",
            source="Hammoudeh & Lowd, CCS 2022",
            normaliser="norm",
        ),
        Method(
            name="tracin",
            title="TracInCP",
            output=LOSS,
            models="checkpoints",
            formula="τ(x, n) = mean over checkpoints c of φ_c(x)ᵀ φ_c,ₙ,  φ of the loss",
            source="Pruthi et al., NeurIPS 2020",
        ),
        Method(
            name="gas",
            title="GAS",
            output=LOSS,
            models="checkpoints",
            normaliser="cosine",
            formula="τ(x, n) = mean over checkpoints c of φ_c(x)ᵀ φ_c,ₙ / (‖φ_c(x)‖ ‖φ_c,ₙ‖),  φ of the loss",
            source="Hammoudeh & Lowd, CCS 2022",
        ),
        Method(
            name="journey-trak",
            title="Journey-TRAK",
            output=LOSS,
            damping=3.16,
            trajectory=True,
            formula="as TRAK, φ(x) the mean over the sampler's steps t of P ∇_θ ‖ε_θ(√ᾱ_t x̂₀ + √(1−ᾱ_t) ε) − ε‖² / D",
            source="Georgiev et al., 2023 (arXiv 2312.06205)",
        ),
        Method(
            name="dtrak-ensemble",
            title="D-TRAK ensemble",
            output=SQUARE,
            damping=0.316,
            models="ensemble",
            formula="mean over models of D-TRAK's τ, each with its own features and kernel",
            source=ZHENG,
        ),
        Method(
            name="trak-ensemble",
            title="TRAK ensemble",
            output=LOSS,
            damping=3.16,
            models="ensemble",
            formula="mean over models of TRAK's τ, each with its own features and kernel",
            source=PARK,
        ),
        Method(
            name="das",
            title="DAS",
            output="mean",
            damping=0.316,
            residual=True,
            formula="τ(x, n) = (φ(x)ᵀ (ΦᵀΦ + λI)⁻¹ φₙ · rₙ / (1 − φₙᵀ (ΦᵀΦ + λI)⁻¹ φₙ))²,  φ of mean(ε_θ), "
            "rₙ = √mean((ε_θ − ε)²)",
            source="Lin et al., ICLR 2025 (arXiv 2410.18639); over the mean of the timesteps' gradients",
        ),
        Method(
            name="pixel-dot",
            title="Pixel dot",
            family="pixel",
            formula="τ(x, n) = xᵀ xₙ,  pixels in [−1, 1]",
            source=f"a baseline of {ZHENG}",
        ),
        Method(
            name="pixel-cos",
            title="Pixel cosine",
            family="pixel",
            normaliser="cosine",
            formula="τ(x, n) = xᵀ xₙ / (‖x‖ ‖xₙ‖),  pixels in [−1, 1]",
            source=f"a baseline of {ZHENG}",
        ),
        Method(
            name="embedding-dot",
            title="Embedding dot",
            family="embedding",
            formula="τ(x, n) = e(x)ᵀ e(xₙ),  e an image embedding",
            source=f"a baseline of {ZHENG}, there with CLIP",
        ),
        Method(
            name="embedding-cos",
            title="Embedding cosine",
            family="embedding",
            normaliser="cosine",
            formula="τ(x, n) = e(x)ᵀ e(xₙ) / (‖e(x)‖ ‖e(xₙ)‖),  e an image embedding",
            source=f"a baseline of {ZHENG}, there with CLIP",
        ),
        Method(
            name="empirical-influence",
            title="Empirical influence",
            family="truth",
            formula="τ(x, n) = mean loss of x over models trained without n − mean over models trained with n",
            source="Feldman & Zhang, NeurIPS 2020",
        ),
        Method(
            name="datamodel",
            title="Datamodel",
            family="truth",
            formula="τ(x, n) = −wₙ,  w the ridge regression of the loss of x on which images a model was trained with",
            source="Ilyas et al., ICML 2022",
        ),
        Method(
            name="random",
            title="Random",
            family="random",
            formula="τ(x, n) uniform in [−1, 1]",
            source="the null",
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
