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

from dtrak.models.families import family_of
from dtrak.models.families.base import Blank
from dtrak.utils.text import size_in_words

CARDS = (24, 48, 80)  # GB
SPARE = 0.9  # share of a card that can be used


@dataclass(frozen=True)
class Memory:
    """Bytes on a GPU for the gradient of one image at one timestep.

    Attributes:
        weights: of the network and of the tuned weights' gradients.
        activations: kept for the backward pass.
        checkpointed: the same with gradient checkpointing; None for networks without.
        beside: of what stays on the GPU too, see :func:`bytes_beside`; None if its size is not known here.
    """

    weights: float
    activations: float
    checkpointed: float | None = None
    beside: float | None = None

    @property
    def network(self) -> float:
        """What the network alone needs."""
        return self.weights + self.activations

    @property
    def smallest(self) -> float:
        """What it needs with gradient checkpointing, if it can."""
        return self.weights + (self.activations if self.checkpointed is None else self.checkpointed)

    def cards(self, network: float) -> list[int] | None:
        """The sizes in GB, of ``CARDS``, that suffice with a tenth kept free; None if that is not known.

        Args:
            network: what the network needs.
        """
        if self.beside is None:
            return None
        return [size for size in CARDS if network + self.beside <= SPARE * size * 1e9]

    def lines(self) -> list[str]:
        """All of it for people."""
        weights, activations = size_in_words(self.weights), size_in_words(self.activations)
        lines = [
            f"GPU memory: {size_in_words(self.network)} for one image at one timestep ({weights} weights, "
            f"{activations} activations)" + self._sufficient(self.network)
        ]
        if self.checkpointed is not None:
            size = size_in_words(self.smallest)
            lines.append(f"  with gradient checkpointing: {size}" + self._sufficient(self.smallest))
        if self.beside is None:
            return [*lines, "  The VAE comes on top; its size is not known before the base model is here."]
        return [*lines, f"  VAE, on top: {size_in_words(self.beside)}"] if self.beside else lines

    def _sufficient(self, network: float) -> str:
        cards = self.cards(network)
        if cards is None:
            return ""
        return f"; cards of {', '.join(map(str, cards))} GB suffice" if cards else "; a card of 80 GB does not suffice"


def bytes_beside(pipeline: Path, width: int) -> float:
    """Bytes of a pipeline's VAE, by the headers of its files; of Stable Diffusion 1.x and 2.x's text encoder, too.

    Other families' text encoders are on the GPU only while they encode.

    Args:
        width: bytes of a weight as it is loaded.
    """
    numbers = 0
    encoders = pipeline.glob("text_encoder/*.safetensors") if family_of(pipeline) == "StableDiffusionPipeline" else ()
    for path in (*pipeline.glob("vae/*.safetensors"), *encoders):
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
    tuned = sum(p.numel() for p in parameters if p.requires_grad)
    frozen = sum(p.numel() for p in parameters if not p.requires_grad)
    kept = _Kept(parameters)
    with _FusedAttention():
        with kept:
            blank.call()
        checkpointed = _checkpointed(blank, parameters)
    known = None if checkpointed is None else float(width * checkpointed)
    return Memory(float(width * frozen + 2 * 4 * tuned), float(width * kept.numbers), known)


def _checkpointed(blank: Blank, parameters: list[torch.nn.Parameter]) -> int | None:
    """Numbers kept with gradient checkpointing: each block's inputs, and what the largest block keeps."""
    network: Any = blank.network
    outside, largest = _Kept(parameters), 0

    def run(block: Any, *inputs: Any) -> Any:
        nonlocal largest
        for tensor in inputs:
            if isinstance(tensor, Tensor):
                outside.keep(tensor)
        inside = _Kept(parameters)
        with inside:
            found = block(*inputs)
        largest = max(largest, inside.numbers)
        return found

    try:
        network.enable_gradient_checkpointing(run)
    except (AttributeError, ValueError):
        return None
    with outside:
        blank.call()
    network.disable_gradient_checkpointing()
    return outside.numbers + largest


class _Kept(torch.autograd.graph.saved_tensors_hooks):
    """The tensors that a forward pass keeps for its backward pass, without the weights."""

    def __init__(self, parameters: list[torch.nn.Parameter]):
        super().__init__(self.keep, lambda tensor: tensor)
        self._own = {p.untyped_storage()._cdata for p in parameters}
        self._kept: dict[int, Tensor] = {}  # tensors stay alive here, so that a storage's address is its own

    def keep(self, tensor: Tensor) -> Tensor:
        """Count a tensor, each storage once."""
        if tensor.untyped_storage()._cdata not in self._own:
            self._kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    @property
    def numbers(self) -> int:
        """How many numbers they hold."""
        return sum(t.untyped_storage().nbytes() // t.element_size() for t in self._kept.values())


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
