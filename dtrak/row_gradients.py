"""Gradients of each row of a batch by itself, from one ordinary forward pass and one backward pass an output.

A layer's gradient is a product of what went into it and of the gradient that came out of it (Goodfellow, 2015,
"Efficient Per-Example Gradient Computations"). So it is enough to record the inputs of the tuned layers and to ask
autograd for the gradients of their outputs: the network runs as it is, with fused attention, and no gradient of a
whole batch is formed.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

Rows = Float[Tensor, "rows *shape"]


@dataclass(frozen=True)
class _Call:
    """One use of a layer: its input, and where the gradient of its output appears."""

    layer: nn.Module
    input: Tensor
    version: int
    output: GradientEdge


class Recorder:
    """Records the uses of the layers that hold a network's tuned parameters."""

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
        """Record the forward passes inside."""
        # First of all hooks, to see what the layer itself gave.
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
        """Whether every layer is of a kind with a formula, and its parameters are its own."""
        parameters = [layer.get_parameter(name) for layer, names in self._tuned.items() for name in names]
        return len({*parameters}) == len(parameters) and all(
            _formula(layer) is not None and {*names} <= {"weight", "bias"} for layer, names in self._tuned.items()
        )

    def keeps_apart(self, rows: int) -> bool:
        """Whether all that was recorded is there still, one item a row."""
        return not self._unknown_calls and all(
            len(call.input) == rows and call.input._version == call.version for call in self._calls
        )

    def gradients(self, prediction: Rows, cotangent: Rows, retain_graph: bool) -> list[Rows]:
        """``cotangent[i]ᵀ ∂prediction[i]/∂θ`` of each row i, for each tuned parameter θ in the network's order.

        Args:
            retain_graph: another cotangent follows.
        """
        edges = [call.output for call in self._calls]
        pulled = torch.autograd.grad(prediction, edges, cotangent, retain_graph=retain_graph, allow_unused=True)
        found: dict[tuple[nn.Module, str], Tensor] = {}
        with torch.no_grad():
            for call, gradient in zip(self._calls, pulled, strict=True):
                formula = _formula(call.layer)
                assert formula is not None
                for name in self._tuned[call.layer] if gradient is not None else ():
                    rows, key = formula(call.layer, name, call.input, gradient), (call.layer, name)
                    found[key] = found[key] + rows if key in found else rows
        wanted = [(layer, name) for layer, names in self._tuned.items() for name in names]
        for layer, name in wanted:
            if (layer, name) not in found:  # the prediction does not depend on it
                parameter = layer.get_parameter(name)
                found[layer, name] = parameter.new_zeros(len(prediction), *parameter.shape)
        return [found[key] for key in wanted]


Formula = Callable[[Any, str, Tensor, Tensor], Rows]


def _formula(layer: nn.Module) -> Formula | None:
    """How the gradients of a layer's weight or bias follow from its input and the gradient of its output."""
    if isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
        return None
    if isinstance(layer, nn.Embedding) and (
        layer.padding_idx is not None or layer.max_norm is not None or layer.scale_grad_by_freq or layer.sparse
    ):
        return None
    return _FORMULAS.get(type(layer))


def _linear(layer: nn.Linear, name: str, given: Tensor, gradient: Tensor) -> Rows:
    gradient = gradient.reshape(len(given), -1, layer.out_features)
    if name == "bias":
        return gradient.sum(1)
    return gradient.transpose(1, 2) @ given.reshape(len(given), -1, layer.in_features)


def _convolution(layer: nn.Conv2d, name: str, given: Tensor, gradient: Tensor) -> Rows:
    if name == "bias":
        return gradient.flatten(2).sum(2)
    if layer.kernel_size == layer.stride == (1, 1) and layer.padding == (0, 0) and layer.groups == 1:
        found = gradient.flatten(2) @ given.flatten(2).transpose(1, 2)
    else:  # one convolution, of which each row is a group
        size = (len(given) * layer.out_channels, *layer.weight.shape[1:])
        together, groups = (given.flatten(0, 1)[None], size, gradient.flatten(0, 1)[None]), len(given) * layer.groups
        found = conv2d_weight(*together, layer.stride, layer.padding, layer.dilation, groups)  # type: ignore[arg-type]
    return found.reshape(len(given), *layer.weight.shape)


def _group_norm(layer: nn.GroupNorm, name: str, given: Tensor, gradient: Tensor) -> Rows:
    if name == "weight":
        gradient = gradient * F.group_norm(given, layer.num_groups, eps=layer.eps)
    return gradient.flatten(2).sum(2)


def _layer_norm(layer: nn.LayerNorm, name: str, given: Tensor, gradient: Tensor) -> Rows:
    if name == "weight":
        gradient = gradient * F.layer_norm(given, layer.normalized_shape, eps=layer.eps)
    return gradient.reshape(len(given), -1, *layer.normalized_shape).sum(1)


def _embedding(layer: nn.Embedding, name: str, given: Tensor, gradient: Tensor) -> Rows:
    found = gradient.new_zeros(len(given), *layer.weight.shape)
    numbers = given.reshape(len(given), -1, 1).expand(-1, -1, layer.embedding_dim)
    return found.scatter_add_(1, numbers, gradient.reshape(numbers.shape))


_FORMULAS: dict[type[nn.Module], Formula] = {
    nn.Linear: _linear,
    nn.Conv2d: _convolution,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.Embedding: _embedding,
}
