"""LoRA (Hu et al., ICLR 2022) by peft: adding it to a network, and scaling its strength."""

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor
from torch.nn import functional as F

from dtrak.config import TrainingConfig
from dtrak.models.base import DiffusionModel, checkpoints_gradients
from dtrak.models.conditioner import ClassConditioner

MOST_MERGED = 100_000_000  # weights that may be copied
ModelT = TypeVar("ModelT", bound=DiffusionModel)


def add_lora(model: ModelT, config: TrainingConfig) -> ModelT:
    """Freeze the model's network and add LoRA; see :func:`with_lora`. Returns the model."""
    classes = isinstance(model.conditioner, ClassConditioner) and bool(model.conditioner.count)
    modules = config.lora_modules or model.lora_modules
    model.network = with_lora(model.network, config.model_copy(update={"lora_modules": modules}), classes)
    return model


def with_lora(unet: torch.nn.Module, config: TrainingConfig, classes: bool = False) -> torch.nn.Module:
    """A frozen network with LoRA; with ``classes``, the class embedding stays trainable.

    ``config.lora_modules`` are suffixes of module names, as in peft. ``config.lora_init`` "gaussian" draws A
    from N(0, 1/rank²), as diffusers does; B starts at zero.
    """
    torch.manual_seed(config.seed)
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]
        target_modules=_targets(unet, config.lora_modules),
        modules_to_save=["class_embedding"] if classes else None,
        init_lora_weights="gaussian" if config.lora_init == "gaussian" else True,
    )
    network = get_peft_model(unet, lora)
    network.config = unet.config
    return network


def _targets(network: torch.nn.Module, suffixes: Sequence[str]) -> list[str]:
    """Suffixes for peft; those that also end a container's name become the full names of the layers among them."""
    targets: list[str] = []
    for suffix in suffixes:
        ended = {name: m for name, m in network.named_modules() if name == suffix or name.endswith(f".{suffix}")}
        layers = [name for name, module in ended.items() if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)]
        targets += [suffix] if len(layers) in (0, len(ended)) else layers
    return targets


@contextlib.contextmanager
def lora_scaled(network: torch.nn.Module, scale: float) -> Iterator[None]:
    """Multiply the strength of all adapters by ``scale`` within the block."""
    layers = [m for m in network.modules() if isinstance(m, LoraLayer)] if scale != 1 else []
    kept = [dict(layer.scaling) for layer in layers]
    for layer in layers:
        layer.scaling.update({name: value * scale for name, value in layer.scaling.items()})
    try:
        yield
    finally:
        for layer, before in zip(layers, kept, strict=True):
            layer.scaling.update(before)


@contextlib.contextmanager
def lora_merged(network: torch.nn.Module, scale: float = 1.0) -> Iterator[None]:
    """Add LoRA to the weights it adapts within the block, where no gradients are taken: a fifth less time a pass.

    It is added at ``scale`` times its strength; what runs within the block sets the same :func:`lora_scaled`.

    The weights are put back exactly. Large networks, and those in lower precision, are left as they are: a copy of
    their weights would cost too much, and rounding would change the result.
    """
    layers: list[Any] = [m for m in network.modules() if isinstance(m, LoraLayer) and not m.merged]
    kept = {layer: layer.get_base_layer().weight for layer in layers}
    small = sum(weight.numel() for weight in kept.values()) <= MOST_MERGED
    if not layers or not small or any(weight.dtype != torch.float32 for weight in kept.values()):
        yield
        return
    before = {layer: weight.detach().clone() for layer, weight in kept.items()}
    with lora_scaled(network, scale):
        for merging in layers:
            merging.merge()
    try:
        yield
    finally:
        for merging in layers:
            merging.unmerge()
            kept[merging].data.copy_(before[merging])


@contextlib.contextmanager
def lora_folded(network: torch.nn.Module) -> Iterator[None]:
    """Compute layers as ``(W + BA) x`` instead of ``W x + B (A x)`` within the block, where that is less work.

    The same function, with the same gradients of A and B up to rounding: for training. Not with gradient
    checkpointing, whose second forward pass comes after the block.
    """
    modules = () if checkpoints_gradients(network) else network.modules()
    layers: list[Any] = [m for m in modules if isinstance(m, LoraLayer) and _folds(m)]
    for layer in layers:
        layer.forward = partial(_folded, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _folds(layer: Any) -> bool:
    """Whether folding is possible and saves work: W's gradient costs one pass, A and B cost three smaller ones."""
    base, names = layer.get_base_layer(), [name for name in layer.active_adapters if name in layer.lora_A]
    plain = isinstance(base, torch.nn.Linear) or (
        isinstance(base, torch.nn.Conv2d) and base.groups == 1 and base.padding_mode == "zeros"
    )
    if not plain or len(names) != 1 or layer.merged or layer.disable_adapters or names[0] in layer.lora_variant:
        return False
    if base.weight.dtype != torch.float32 or not isinstance(layer.lora_dropout[names[0]], torch.nn.Identity):
        return False
    rows, columns = base.weight.flatten(1).shape
    return bool(3 * layer.r[names[0]] * (rows + columns) > rows * columns)


def _folded(layer: Any, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
    base = layer.get_base_layer()
    (name,) = (name for name in layer.active_adapters if name in layer.lora_A)
    weight = base.weight + layer.get_delta_weight(name)
    if isinstance(base, torch.nn.Linear):
        return F.linear(x, weight, base.bias)
    return F.conv2d(x, weight, base.bias, base.stride, base.padding, base.dilation)
