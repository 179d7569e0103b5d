"""Loading LoRA adapters in peft's format; pickled weights are refused."""

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils import load_peft_weights
from safetensors import SafetensorError

from dtrak.utils.errors import DtrakError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def load_peft(network: Any, adapter: Path) -> torch.nn.Module:
    """The network with an adapter, whose parameters are the tuned ones.

    Raises:
        DtrakError: the adapter is missing, incomplete, pickled, damaged, or made for another network.
    """
    for name in (CONFIG, WEIGHTS):
        if not (adapter / name).is_file():
            raise DtrakError(
                f"The adapter {adapter} has no {name}.",
                hint="Set model.adapter to a directory written by save_pretrained of a peft model; weights must be in "
                "safetensors format.",
            )
    try:
        wanted = {name for name in load_peft_weights(str(adapter), device="cpu") if "lora_" in name}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # missing keys are checked below
            found: Any = PeftModel.from_pretrained(network, adapter, is_trainable=True)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise DtrakError(
            f"The adapter {adapter} does not match the model: {error}", hint="Use a LoRA made for this base model."
        ) from error
    own = {_saved(name) for name, _ in found.named_parameters() if "lora_" in name}
    if not own or own != wanted:
        differing = sorted(own ^ wanted)[:3]
        raise DtrakError(
            f"The adapter {adapter} does not match the model: {', '.join(differing) or 'it tunes nothing'}.",
            hint="Use a LoRA made for this base model.",
        )
    found.config = network.config
    return found


def merged_into(network: Any) -> torch.nn.Module:
    """The network with its adapter added to its weights for good, to the same bits whatever the number of threads."""
    for layer in network.modules():
        if isinstance(layer, LoraLayer):
            _add_in_order(layer)
    if isinstance(network, PeftModel):
        merged: Any = network.merge_and_unload()
        return merged
    network.fuse_lora()
    network.unload_lora()
    return network


@torch.no_grad()
def _add_in_order(layer: Any) -> None:
    """Add a plain LoRA to its layer, one rank after the other in float64; a matrix product's order depends on threads.

    Its B is then zero, so that peft, which merges what is not plain, adds nothing more.
    """
    base = layer.get_base_layer()
    plain = isinstance(base, torch.nn.Linear) or (isinstance(base, torch.nn.Conv2d) and base.groups == 1)
    for name in layer.active_adapters if plain and not getattr(layer, "fan_in_fan_out", False) else ():
        if name not in layer.lora_A or name in layer.lora_variant or layer.lora_bias.get(name):
            continue
        a, b = (part[name].weight.double().flatten(1) for part in (layer.lora_A, layer.lora_B))
        added = torch.zeros(len(b), a.shape[1], dtype=a.dtype, device=a.device)
        for rank in range(len(a)):
            added += b[:, rank, None] * a[rank]
        total = base.weight.double() + layer.scaling[name] * added.reshape(base.weight.shape)
        base.weight.copy_(total)
        layer.lora_B[name].weight.zero_()


def _saved(name: str) -> str:
    """A parameter's name in peft's files."""
    name = name.replace(".default", "")
    return name.removesuffix(".weight") if "lora_magnitude_vector" in name else name
