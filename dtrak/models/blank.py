"""A study's network with new weights, for counting operations; no weights are loaded."""

import contextlib
from pathlib import Path
from typing import Any

import torch

from dtrak.config import Study, TrainingConfig, load_study
from dtrak.models.families import FAMILIES, loader_of
from dtrak.models.families.base import Blank
from dtrak.models.lora import with_lora
from dtrak.models.lora_file import LoraFile, read_lora_file
from dtrak.models.pixel import PixelModel, new_scheduler, new_unet
from dtrak.study.folder import base_path
from dtrak.utils.errors import DtrakError
from dtrak.utils.files import read_json

ASSUMED = "StableDiffusionPipeline"  # of a text-to-image model that is not on this machine


def new_network(study: Study) -> Blank:
    """The study's network with new weights and its LoRA, one input, and a forward pass.

    Raises:
        DtrakError: the network's architecture is not known on this machine.
    """
    recipe = study.training if study.training.method == "lora" else None
    if study.model.kind == "text-to-image":
        path = local_base(study)
        file = _lora_file(study)
        loader = loader_of(path, file.family if file and file.family in FAMILIES else ASSUMED)
        found = loader.blank(study.resolution, path)
        recipe = recipe or _adapter_recipe(study)
        modules = recipe.lora_modules or loader.lora_modules
        with_lora(found.network, recipe.model_copy(update={"lora_modules": modules}))
        return found
    network: Any = new_unet(study.model.unet or _architecture(study))
    model = PixelModel(network, new_scheduler(), study.resolution)
    x = torch.zeros(1, *model.latent_shape)
    told = {"class_labels": torch.zeros(1, dtype=torch.long)} if model.conditioner.count else {}
    if recipe is None and study.model.adapter is not None:
        recipe = _adapter_recipe(study)
    tuned = with_lora(network, recipe, bool(told)) if recipe else network
    return Blank(tuned, x, lambda: tuned(x, torch.zeros(1), **told).sample)


def local_base(study: Study) -> Path | None:
    """The directory of the study's base model; None if it is on the hub and not downloaded."""
    with contextlib.suppress(DtrakError):
        path = base_path(study)
        return path if path.is_dir() else None
    return None


def _adapter_recipe(study: Study) -> TrainingConfig:
    """The LoRA configuration of the study's adapter; no modules where it does not say which layers it adapts."""
    if file := _lora_file(study):
        return TrainingConfig(method="lora", rank=max(file.ranks, key=lambda rank: file.ranks[rank]))
    described = study.resolve(study.model.adapter) / "adapter_config.json" if study.model.adapter else None
    content = read_json(described) if described and described.is_file() else {}
    named = content.get("target_modules") or ()
    modules = (named,) if isinstance(named, str) else tuple(named)
    return TrainingConfig(method="lora", rank=content.get("r", 16), lora_modules=modules)


def _lora_file(study: Study) -> LoraFile | None:
    path = study.resolve(study.model.adapter) if study.model.adapter else None
    return read_lora_file(path) if path and path.suffix == ".safetensors" and path.is_file() else None


def _architecture(study: Study) -> dict[str, object]:
    if study.model.base and (unet := load_study(study.model.base).model.unet):
        return unet
    path = base_path(study)
    for place in (path / "unet" / "config.json", path / "config.json"):
        if place.is_file():
            return {k: v for k, v in read_json(place).items() if not k.startswith("_") and v is not None}
    raise DtrakError(f"The network architecture of '{study.name}' is not known.", hint="Set model.unet or model.path.")
