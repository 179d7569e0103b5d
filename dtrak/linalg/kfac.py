"""EK-FAC: a layer-wise approximation of the Gauss–Newton matrix of a training loss, diagonal in a Kronecker basis.

For a layer with inputs a and output gradients g, summed over the positions where its weight is applied,

    G = Σ g aᵀ,   F = E[vec(G) vec(G)ᵀ] ≈ (U_S ⊗ U_A) diag(Λ) (U_S ⊗ U_A)ᵀ,   Λ = E[(U_Sᵀ G U_A)²],

with U_A, U_S the eigenvectors of E[a aᵀ] and E[g gᵀ]. For influence: Grosse et al., 2023 (arXiv 2308.03296); for
diffusion models: Mlodozeniec et al., ICLR 2025 (arXiv 2410.13850). The loss is mean((ε_θ − ε)²), so its Hessian in the
outputs is (2/D) I, and g is the gradient for the cotangent v = √(2/D) z with z ~ N(0, I). Parameters outside linear
and convolutional layers are excluded: their part of a preconditioned gradient is zero.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file, save
from torch import Tensor, nn

from dtrak.utils.files import write_bytes

Predict = Callable[[], Float[Tensor, "rows *shape"]]


@dataclass(frozen=True)
class Factors:
    """The factors of one layer's weight, with its bias, if tuned, as the last column.

    Attributes:
        inputs: U_A, eigenvectors of E[a aᵀ], in columns.
        outputs: U_S, eigenvectors of E[g gᵀ], in columns.
        eigenvalues: Λ.
        bias: whether the last column is a bias.
    """

    inputs: Float[Tensor, "i i"]
    outputs: Float[Tensor, "o o"]
    eigenvalues: Float[Tensor, "o i"]
    bias: bool

    def turn(self, gradient: Float[Tensor, "o i"]) -> Float[Tensor, "o i"]:
        """A layer's gradient in the basis where F is diagonal."""
        return self.outputs.T @ gradient @ self.inputs

    def solve(self, turned: Float[Tensor, "o i"], damping: float) -> Float[Tensor, "o i"]:
        """(F + λI)⁻¹ of a gradient in that basis, back in its own; λ absolute."""
        return self.outputs @ (turned / (self.eigenvalues + damping)) @ self.inputs.T


class Kfac:
    """The factors of all tuned layers, by layer name."""

    def __init__(self, layers: dict[str, Factors]):
        self.layers = layers

    @cached_property
    def mean_eigenvalue(self) -> float:
        """The mean eigenvalue over all layers: the unit of relative damping."""
        total = sum(float(f.eigenvalues.double().sum()) for f in self.layers.values())
        return total / max(1, sum(f.eigenvalues.numel() for f in self.layers.values()))

    def precondition(self, gradients: Mapping[str, Tensor], damping: float) -> dict[str, Tensor]:
        """(F + λI)⁻¹ g for gradients by parameter name; zero for parameters outside the factored layers.

        Args:
            damping: λ relative to :attr:`mean_eigenvalue`.

        Raises:
            ValueError: damping is not positive.
        """
        return self.solve(self.turn(gradients), gradients, damping)

    def turn(self, gradients: Mapping[str, Tensor]) -> dict[str, Float[Tensor, "o i"]]:
        """Gradients in the bases where F is diagonal, by layer: once for any number of λ."""
        turned = {}
        for layer, factors in self.layers.items():
            matrix = gradients[f"{layer}.weight"].flatten(1)
            if factors.bias:
                matrix = torch.cat([matrix, gradients[f"{layer}.bias"][:, None]], dim=1)
            turned[layer] = factors.turn(matrix.to(factors.inputs))
        return turned

    def solve(self, turned: Mapping[str, Tensor], like: Mapping[str, Tensor], damping: float) -> dict[str, Tensor]:
        """(F + λI)⁻¹ g for gradients that were turned; see :meth:`precondition`.

        Args:
            like: the gradients themselves, whose names, shapes and types the result has.
        """
        if not damping > 0:
            raise ValueError(f"damping must be positive, not {damping}")
        absolute = damping * (self.mean_eigenvalue or 1.0)
        found = {name: torch.zeros_like(gradient) for name, gradient in like.items()}
        for layer, factors in self.layers.items():
            weight = like[f"{layer}.weight"]
            solved = factors.solve(turned[layer], absolute).to(weight)
            if factors.bias:
                found[f"{layer}.bias"] = solved[:, -1]
                solved = solved[:, :-1]
            found[f"{layer}.weight"] = solved.reshape(weight.shape)
        return found

    def save(self, path: Path) -> None:
        """Write all factors to one safetensors file."""
        tensors: dict[str, Tensor] = {}
        for name, f in self.layers.items():
            tensors |= {
                f"{name}/inputs": f.inputs, f"{name}/outputs": f.outputs, f"{name}/eigenvalues": f.eigenvalues,
                f"{name}/bias": torch.tensor(f.bias),
            }  # fmt: skip
        write_bytes(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}))

    @classmethod
    def load(cls, path: Path) -> "Kfac":
        """Read what :meth:`save` wrote."""
        tensors = load_file(path)
        names = dict.fromkeys(key.rsplit("/", 1)[0] for key in tensors)
        return cls({
            name: Factors(
                tensors[f"{name}/inputs"], tensors[f"{name}/outputs"], tensors[f"{name}/eigenvalues"],
                bool(tensors[f"{name}/bias"]),
            )
            for name in names
        })  # fmt: skip


def fit(network: nn.Module, batches: Callable[[], Iterable[tuple[Predict, Tensor]]]) -> Kfac:
    """The factors of a network's tuned linear and convolutional layers.

    Args:
        batches: called twice; yields forward passes, each with cotangents v [draws, rows, …]. A row is one data
            point; the result averages over draws.

    Raises:
        ValueError: a layer is used twice in one pass, or a convolution has string padding.
    """
    layers = tuned_layers(network)
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    for calls in _pulled_back(layers, batches()):
        for name, (a, g) in calls.items():
            _add(inputs, name, a.flatten(0, 1).T @ a.flatten(0, 1))
            _add(outputs, name, g.flatten(0, 1).T @ g.flatten(0, 1))
    vectors = {name: (torch.linalg.eigh(inputs[name])[1], torch.linalg.eigh(outputs[name])[1]) for name in inputs}
    squares: dict[str, Tensor] = {}
    count = 0
    for calls in _pulled_back(layers, batches()):
        count += len(next(iter(calls.values()))[1])
        for name, (a, g) in calls.items():
            of_inputs, of_outputs = vectors[name]
            turned = torch.einsum("rpo,rpi->roi", g @ of_outputs, a @ of_inputs)
            _add(squares, name, turned.square().sum(0))
    return Kfac({name: Factors(*vectors[name], squares[name] / count, _tuned_bias(layers[name])) for name in vectors})


def tuned_layers(network: nn.Module) -> dict[str, nn.Module]:
    """The linear and ungrouped convolutional layers with a tuned weight, by name."""
    return {
        name: layer
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and layer.weight.requires_grad and getattr(layer, "groups", 1) == 1
    }


def _tuned_bias(layer: nn.Module) -> bool:
    bias = getattr(layer, "bias", None)
    return isinstance(bias, Tensor) and bias.requires_grad


Calls = dict[str, tuple[Float[Tensor, "rows positions i"], Float[Tensor, "rows positions o"]]]


def _pulled_back(layers: dict[str, nn.Module], batches: Iterable[tuple[Predict, Tensor]]) -> Iterator[Calls]:
    """Inputs and output gradients of each layer, in float64, one dictionary per draw."""
    for predict, cotangents in batches:
        with _recording(layers) as calls:
            prediction = predict()
        names = list(calls)
        given = {name: _positions(layers[name], calls[name][0]) for name in names}
        for number, cotangent in enumerate(cotangents):
            gradients = torch.autograd.grad(
                prediction, [calls[name][1] for name in names], cotangent, materialize_grads=True,
                retain_graph=number + 1 < len(cotangents),
            )  # fmt: skip
            yield {
                name: (given[name], _output_positions(layers[name], gradient).double())
                for name, gradient in zip(names, gradients, strict=True)
            }


@contextlib.contextmanager
def _recording(layers: dict[str, nn.Module]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    calls: dict[str, tuple[Tensor, Tensor]] = {}
    hooks = []
    for name, layer in layers.items():

        def record(_: nn.Module, given: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
            if name in calls:
                raise ValueError(f"layer {name} is used twice in one pass, which EK-FAC does not support")
            calls[name] = given[0].detach(), output

        hooks.append(layer.register_forward_hook(record))
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _positions(layer: nn.Module, given: Tensor) -> Float[Tensor, "rows positions i"]:
    """A layer's input at each position where its weight is applied, with a one appended for a tuned bias."""
    if isinstance(layer, nn.Conv2d):
        unfolded = F.unfold(
            given, layer.kernel_size, dilation=layer.dilation, padding=_padding(layer), stride=layer.stride
        )
        rows = unfolded.transpose(1, 2)
    else:
        rows = given.reshape(len(given), -1, given.shape[-1])
    if _tuned_bias(layer):
        rows = torch.cat([rows, rows.new_ones(*rows.shape[:2], 1)], dim=2)
    return rows.double()


def _output_positions(layer: nn.Module, gradient: Tensor) -> Float[Tensor, "rows positions o"]:
    if isinstance(layer, nn.Conv2d):
        return gradient.flatten(2).transpose(1, 2)
    return gradient.reshape(len(gradient), -1, gradient.shape[-1])


def _padding(layer: nn.Conv2d) -> tuple[int, ...]:
    if isinstance(layer.padding, str):
        raise ValueError("convolutions with string padding are not supported")
    return tuple(layer.padding)


def _add(totals: dict[str, Tensor], name: str, value: Tensor) -> None:
    totals[name] = totals[name] + value if name in totals else value
