"""A study's network with new weights, for counting operations; no weights are loaded."""

from typing import Any

import torch

from dtrak.config import Study, TrainingConfig, load_study
from dtrak.models.lora import with_lora
from dtrak.models.pixel import PixelModel, new_scheduler, new_unet
from dtrak.study.folder import base_path
from dtrak.utils.errors import DtrakError
from dtrak.utils.files import read_json

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def new_network(study: Study) -> tuple[torch.nn.Module, torch.Tensor, dict[str, torch.Tensor]]:
    """The study's network with new weights and its LoRA, one input, and its conditioning keywords.

    Raises:
        DtrakError: the network's architecture is not known on this machine.
    """
    network: Any
    if study.model.kind == "text-to-image":
        from dtrak.models.stable_diffusion import blank_unet

        network, x, told = blank_unet(study.resolution)
    else:
        network = new_unet(study.model.unet or _architecture(study))
        model = PixelModel(network, new_scheduler(), study.resolution)
        x = torch.zeros(1, *model.latent_shape)
        told = {"class_labels": torch.zeros(1, dtype=torch.long)} if model.conditioner.count else {}
    recipe = _adapter_recipe(study)
    return (with_lora(network, recipe, "class_labels" in told) if recipe else network), x, told


def _adapter_recipe(study: Study) -> TrainingConfig | None:
    """The LoRA configuration of the study's adapter; None if the whole network is tuned."""
    if study.training.method == "lora":
        return study.training
    if study.model.adapter is None:
        return None
    described = study.resolve(study.model.adapter) / "adapter_config.json"
    content = read_json(described) if described.is_file() else {}
    modules = content.get("target_modules") or ATTENTION  # the usual modules of diffusers' LoRA files
    return TrainingConfig(method="lora", rank=content.get("r", 16), lora_modules=tuple(modules))


def _architecture(study: Study) -> dict[str, object]:
    if study.model.base and (unet := load_study(study.model.base).model.unet):
        return unet
    path = base_path(study)
    for place in (path / "unet" / "config.json", path / "config.json"):
        if place.is_file():
            return {k: v for k, v in read_json(place).items() if not k.startswith("_") and v is not None}
    raise DtrakError(f"The network architecture of '{study.name}' is not known.", hint="Set model.unet or model.path.")
