"""Per-row gradients of a batch, from one ordinary forward pass and one backward pass per output function.

A layer's per-row gradient is a product of its input and of the gradient of its output (Goodfellow, 2015, arXiv
1510.01799, "Efficient Per-Example Gradient Computations"). So it suffices to record the inputs of the tuned layers
and to take autograd's gradients of their outputs: the network runs unmodified, with fused attention, and no batch
gradient is formed. For each layer one matrix product serves all output functions, whose gradients are concatenated
as channels. Per-row gradients exist for one parameter at a time.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

Rows = Float[Tensor, "rows *shape"]


@dataclass(frozen=True)
class _Call:
    """One call of a layer: its input with its version counter, and the autograd edge of its output."""

    layer: nn.Module
    input: Tensor
    version: int
    output: GradientEdge


class Recorder:
    """Records the calls of the layers that own a network's tuned parameters."""

    def __init__(self, network: nn.Module):
        tuned = {
            layer: [name for name, p in layer.named_parameters(recurse=False) if p.requires_grad]
            for layer in network.modules()
        }
        self._tuned = {layer: names for layer, names in tuned.items() if names}
        self._calls: list[_Call] = []
        self._unknown_calls = False

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Record the forward passes in the block."""
        # Run before other hooks, which might replace the layer's output.
        hooks = [layer.register_forward_hook(self._record, prepend=True) for layer in self._tuned]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _record(self, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if len(inputs) != 1:
            self._unknown_calls = True
        elif output.requires_grad:
            given = inputs[0].detach()
            self._calls.append(_Call(layer, given, given._version, get_gradient_edge(output)))

    @property
    def knows_layers(self) -> bool:
        """Whether every tuned layer has a known formula and no parameter is shared."""
        parameters = [layer.get_parameter(name) for layer, names in self._tuned.items() for name in names]
        return len({*parameters}) == len(parameters) and all(
            _formula(layer) is not None and {*names} <= {"weight", "bias"} for layer, names in self._tuned.items()
        )

    def keeps_apart(self, rows: int) -> bool:
        """Whether all recorded inputs are unmodified and have one entry per row."""
        return not self._unknown_calls and all(
            len(call.input) == rows and call.input._version == call.version for call in self._calls
        )

    def gradients(self, prediction: Rows, cotangents: Sequence[Rows]) -> Iterator[list[Rows]]:
        """``vᵢᵀ ∂prediction[i]/∂θ`` for each row i, with vᵢ row i of each cotangent.

        Yields:
            For each tuned parameter θ, in the network's order, one tensor (rows, *θ.shape) per cotangent.
        """
        edges = [call.output for call in self._calls]
        last = len(cotangents) - 1
        pulled = [
            torch.autograd.grad(prediction, edges, cotangent, retain_graph=i < last, allow_unused=True)
            for i, cotangent in enumerate(cotangents)
        ]
        uses: dict[nn.Module, list[tuple[Tensor, list[Tensor]]]] = {layer: [] for layer in self._tuned}
        for call, gradients in zip(self._calls, zip(*pulled, strict=True), strict=True):
            if gradients[0] is not None:  # None if the prediction does not depend on this call
                uses[call.layer].append((call.input, list(gradients)))
        for layer, names in self._tuned.items():
            for name in names:
                with torch.no_grad():
                    found = self._added_up(layer, name, uses[layer], len(prediction), len(cotangents))
                yield found

    @staticmethod
    def _added_up(
        layer: nn.Module, name: str, uses: list[tuple[Tensor, list[Tensor]]], rows: int, cotangents: int
    ) -> list[Rows]:
        parameter, formula = layer.get_parameter(name), _formula(layer)
        assert formula is not None
        if not uses:
            return [parameter.new_zeros(rows, *parameter.shape)] * cotangents
        found = [formula(layer, name, given, gradients) for given, gradients in uses]
        return found[0] if len(found) == 1 else [torch.stack(same).sum(0) for same in zip(*found, strict=True)]


Formula = Callable[[Any, str, Tensor, list[Tensor]], list[Rows]]


def _formula(layer: nn.Module) -> Formula | None:
    """The function that computes gradients of a layer's weight or bias; None if the layer is not supported."""
    if isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
        return None
    if isinstance(layer, nn.Embedding) and (
        layer.padding_idx is not None or layer.max_norm is not None or layer.scale_grad_by_freq or layer.sparse
    ):
        return None
    return _FORMULAS.get(type(layer))


def _linear(layer: nn.Linear, name: str, given: Tensor, gradients: list[Tensor]) -> list[Rows]:
    gradients = [gradient.reshape(len(given), -1, layer.out_features) for gradient in gradients]
    if name == "bias":
        return [gradient.sum(1) for gradient in gradients]
    together = torch.cat(gradients, 2).transpose(1, 2)
    return list((together @ given.reshape(len(given), -1, layer.in_features)).split(layer.out_features, 1))


def _convolution(layer: nn.Conv2d, name: str, given: Tensor, gradients: list[Tensor]) -> list[Rows]:
    if name == "bias":
        return [gradient.flatten(2).sum(2) for gradient in gradients]
    if layer.groups == 1 and layer.stride == (1, 1):
        return list(_shifted_products(layer, given, gradients).split(layer.out_channels, 1))
    found = []
    for gradient in gradients:  # a single convolution with each row as a group
        size = (len(given) * layer.out_channels, *layer.weight.shape[1:])
        together, groups = (given.flatten(0, 1)[None], size, gradient.flatten(0, 1)[None]), len(given) * layer.groups
        rows = conv2d_weight(*together, layer.stride, layer.padding, layer.dilation, groups)
        found.append(rows.reshape(len(given), *layer.weight.shape))
    return found


def _shifted_products(layer: nn.Conv2d, given: Tensor, gradients: list[Tensor]) -> Float[Tensor, "rows out in h w"]:
    """Weight gradients by one batched matrix product per kernel position.

    With both images flattened to rows of the padded input's width, moving the kernel by (y, x) shifts the flat array
    by ``y · width + x``. Rows of the gradient are padded with zeros to that width.
    """
    (pad_y, pad_x), (step_y, step_x) = cast(tuple[int, int], layer.padding), layer.dilation
    size = layer.out_channels
    rows, channels, height, width = len(given), *layer.weight.shape[1:]
    pixels = F.pad(given.permute(0, 2, 3, 1), (0, 0, pad_x, pad_x, pad_y, pad_y))
    *_, high, wide = gradients[0].shape
    line = pixels.shape[2]
    of_outputs = given.new_zeros(rows, high, line, size * len(gradients))
    for i, gradient in enumerate(gradients):
        of_outputs[:, :, :wide, i * size : (i + 1) * size] = gradient.permute(0, 2, 3, 1)
    length = (high - 1) * line + wide
    pixels, of_outputs = pixels.flatten(1, 2), of_outputs.flatten(1, 2)[:, :length].transpose(1, 2)
    found = given.new_empty(rows, size * len(gradients), height, width, channels)
    for y in range(height):
        for x in range(width):
            first = y * step_y * line + x * step_x
            torch.bmm(of_outputs, pixels[:, first : first + length], out=found[:, :, y, x])
    return found.permute(0, 1, 4, 2, 3)


def _group_norm(layer: nn.GroupNorm, name: str, given: Tensor, gradients: list[Tensor]) -> list[Rows]:
    if name == "weight":
        normal = F.group_norm(given, layer.num_groups, eps=layer.eps)
        gradients = [gradient * normal for gradient in gradients]
    return [gradient.flatten(2).sum(2) for gradient in gradients]


def _layer_norm(layer: nn.LayerNorm, name: str, given: Tensor, gradients: list[Tensor]) -> list[Rows]:
    if name == "weight":
        normal = F.layer_norm(given, layer.normalized_shape, eps=layer.eps)
        gradients = [gradient * normal for gradient in gradients]
    return [gradient.reshape(len(given), -1, *layer.normalized_shape).sum(1) for gradient in gradients]


def _embedding(layer: nn.Embedding, name: str, given: Tensor, gradients: list[Tensor]) -> list[Rows]:
    numbers = given.reshape(len(given), -1, 1).expand(-1, -1, layer.embedding_dim)
    zeros = [gradient.new_zeros(len(given), *layer.weight.shape) for gradient in gradients]
    return [z.scatter_add_(1, numbers, g.reshape(numbers.shape)) for z, g in zip(zeros, gradients, strict=True)]


_FORMULAS: dict[type[nn.Module], Formula] = {
    nn.Linear: _linear,
    nn.Conv2d: _convolution,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.Embedding: _embedding,
}
