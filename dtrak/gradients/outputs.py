"""Output functions f of the predicted noise, each given by its cotangent v = ∂f/∂ε_θ.

    ∇_θ f = vᵀ ∂ε_θ/∂θ

So one forward pass serves every output function, with one vector–Jacobian product each. Names and
definitions follow Zheng et al., "Intriguing Properties of Data Attribution on Diffusion Models"
(ICLR 2024), whose D-TRAK is ``mean-squared-l2-norm`` and whose TRAK is ``loss``.

This module does not import torch, which takes a second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    Batch = Float[Tensor, "rows *dims"]
    Cotangent = Callable[[Batch, Batch, Float[Tensor, " rows"]], Batch]


def _per_row(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.ndim - 1))


def _size(prediction: Tensor) -> int:
    return prediction[0].numel()


def loss(prediction: Batch, noise: Batch, elbo_weight: Tensor) -> Batch:
    """f = mean((ε_θ − ε)²), the training loss (TRAK)."""
    return 2 * (prediction - noise) / _size(prediction)


def mean_squared_l2_norm(prediction: Batch, noise: Batch, elbo_weight: Tensor) -> Batch:
    """f = ‖ε_θ‖² / D (D-TRAK)."""
    return 2 * prediction / _size(prediction)


def mean(prediction: Batch, noise: Batch, elbo_weight: Tensor) -> Batch:
    """f = mean(ε_θ)."""
    return prediction.new_full(prediction.shape, 1 / _size(prediction))


def l1_norm(prediction: Batch, noise: Batch, elbo_weight: Tensor) -> Batch:
    """f = Σ|ε_θ|."""
    return prediction.sign()


def l2_norm(prediction: Batch, noise: Batch, elbo_weight: Tensor) -> Batch:
    """f = ‖ε_θ‖₂."""
    return prediction / _per_row(prediction.flatten(1).norm(dim=1), prediction)


def linf_norm(prediction: Batch, noise: Batch, elbo_weight: Tensor) -> Batch:
    """f = max|ε_θ|; the gradient is non-zero only at the element of largest magnitude."""
    flat = prediction.flatten(1)
    index = flat.abs().argmax(dim=1, keepdim=True)
    return flat.new_zeros(flat.shape).scatter(1, index, flat.gather(1, index).sign()).reshape(prediction.shape)


def weighted_mse(prediction: Batch, noise: Batch, elbo_weight: Tensor) -> Batch:
    """f = w_t · mean((ε_θ − ε)²) with the ELBO weights w_t = β_t² / (2 σ_t² α_t (1 − ᾱ_t)), σ_t² = β_t."""
    return _per_row(elbo_weight, prediction) * loss(prediction, noise, elbo_weight)


VIEWS = ("noise", "image")  # an output function may look at ε̂ or x̂₀ in the place of the prediction


def split_view(output: str) -> tuple[str, str]:
    """The view of an output function's name, and the function: "image-l2-norm" is "l2-norm" of x̂₀."""
    view, _, name = output.partition("-")
    return (view, name) if view in VIEWS else ("", output)


OUTPUT_FUNCTIONS: dict[str, Cotangent] = {
    "loss": loss,
    "mean-squared-l2-norm": mean_squared_l2_norm,
    "mean": mean,
    "l1-norm": l1_norm,
    "l2-norm": l2_norm,
    "linf-norm": linf_norm,
    "weighted-mse": weighted_mse,
}
