"""GPU memory of features, estimated without running a network: weights, and what one backward pass needs kept."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from dtrak.models.families.base import Blank

CARDS = (24, 48, 80)  # GB
SPARE = 0.9  # share of a card that can be used


@dataclass(frozen=True)
class Memory:
    """Bytes on a GPU for the gradient of one image at one timestep.

    Attributes:
        weights: of the network and of the tuned weights' gradients.
        activations: kept for the backward pass.
        beside: of text encoders and VAE, which stay on the GPU too; None if their size is not known here.
    """

    weights: float
    activations: float
    beside: float | None = None

    @property
    def network(self) -> float:
        """What the network alone needs."""
        return self.weights + self.activations

    @property
    def cards(self) -> list[int] | None:
        """The sizes in GB, of ``CARDS``, that suffice with a tenth kept free; None if that is not known."""
        if self.beside is None:
            return None
        return [size for size in CARDS if self.network + self.beside <= SPARE * size * 1e9]


def bytes_beside(pipeline: Path, width: int) -> float:
    """Bytes of a pipeline's text encoders and VAE, by the headers of their files.

    Args:
        width: bytes of a weight as it is loaded.
    """
    numbers = 0
    for path in (*pipeline.glob("text_encoder*/*.safetensors"), *pipeline.glob("vae/*.safetensors")):
        with safe_open(path, "pt") as file:
            numbers += sum(math.prod(file.get_slice(name).get_shape()) for name in list(file.keys()))
    return float(width * numbers)


def estimate_memory(blank: Blank, width: int) -> Memory:
    """Trace one forward pass on PyTorch's meta device.

    Args:
        blank: on the meta device.
        width: bytes of a frozen weight and of an activation; tuned weights have 4.
    """
    parameters = list(blank.network.parameters())
    own = {p.untyped_storage()._cdata for p in parameters}
    kept: dict[int, Tensor] = {}  # tensors stay alive here, so that a storage's address is its own

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in own:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with _FusedAttention(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        blank.call()
    tuned = sum(p.numel() for p in parameters if p.requires_grad)
    frozen = sum(p.numel() for p in parameters if not p.requires_grad)
    numbers = sum(t.untyped_storage().nbytes() // t.element_size() for t in kept.values())
    return Memory(float(width * frozen + 2 * 4 * tuned), float(width * numbers))


class _Attention(torch.autograd.Function):
    """What fused attention keeps: its inputs and its output, not the matrix of all pairs."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        found = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, found)
        return found


class _FusedAttention(TorchFunctionMode):
    """Replaces attention by :class:`_Attention`, in this thread only."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **given)
        names = ("query", "key", "value")[len(args) :]
        return _Attention.apply(*args[:3], *(given[name] for name in names))  # type: ignore[no-untyped-call]
