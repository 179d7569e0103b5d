"""Loading a study's models."""

from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import torch

from dtrak.config import LAST, RANDOMISED, Study
from dtrak.models.base import DiffusionModel, checkpoint_gradients, shuffle_weights
from dtrak.models.pixel import load_model
from dtrak.study.folder import CONDITIONING, StudyFolder, base_adapters, model_variants, trained_model_config
from dtrak.utils.errors import DtrakError

PROMPTS = 8  # suggested prompts
MOST_CAPTIONS = 100_000  # that they are chosen from


def load_study_model(folder: StudyFolder, device: torch.device | str = "cpu", variant: str = LAST) -> DiffusionModel:
    """Load the study's model, or another of :func:`model_variants`.

    Raises:
        DtrakError: it does not exist yet, or cannot be loaded.
    """
    if variant == RANDOMISED:
        return shuffle_weights(load_study_model(folder, device))
    config = trained_model_config(folder)
    if variant != LAST:
        variants = model_variants(folder)
        if variant not in variants:
            raise DtrakError(
                f"Study '{folder.study.name}' has no model '{variant}'.",
                hint=f"Its models: {', '.join(variants)}. Add others under model.checkpoints or model.ensemble.",
            )
        config = config.model_copy(update={"adapter" if config.adapter else "path": variants[variant].path})
    if config.path is None or not config.path.exists():
        raise DtrakError(
            f"Study '{folder.study.name}' has no model yet ({config.path}).",
            hint=f"python -m index_builder train {folder.study.name}",
        )
    if folder.study.model.kind == "text-to-image" and config.adapter is None:  # its base is never tuned
        raise DtrakError(
            f"Study '{folder.study.name}' has no LoRA to attribute over.",
            hint="Set model.adapter, or set training.method: lora and train one.",
        )
    model = load_any(folder.study, config.path, config.adapter, suggested_prompts(folder)).to(device)
    if model.device.type == "cpu" and not model.takes_text:
        # Faster for convolutions, not for attention. Training does not use it, to stay comparable with earlier runs.
        model.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def load_any(study: Study, path: Path, adapter: Path | None = None, prompts: Sequence[str] = ()) -> DiffusionModel:
    """Load a model of the study's kind; see :func:`load_model` and :mod:`dtrak.models.families`.

    Where ``path`` is that of the study's base, the base's own adapters are merged in.

    Raises:
        DtrakError: it cannot be loaded.
    """
    config, merged = study.model, base_adapters(study, path)
    if merged and config.quantise:
        raise DtrakError("Quantised weights cannot take in the adapter of their base.", hint="Remove model.quantise.")
    if config.kind == "text-to-image":
        from dtrak.models.families import loader_of

        dtype = getattr(torch, config.dtype)
        model = loader_of(path).load(
            path, study.resolution, adapter, dtype, prompts, config.guidance_input, config.quantise, merged
        )
        model.conditioner.keep_in(StudyFolder(study).root / CONDITIONING)
        if config.gradient_checkpointing:
            checkpoint_gradients(model.network)
        return model
    return load_model(path, study.resolution, adapter, config.classes, config.null_class, merged)


def suggested_prompts(folder: StudyFolder) -> list[str]:
    """Captions of the training set as prompts for a text-to-image model: the most frequent of each label, in turn."""
    if folder.study.model.kind != "text-to-image" or not (folder.data / "report.json").exists():
        return []
    table = folder.table
    sampled = table.train_records[:: max(1, -(-table.train_size // MOST_CAPTIONS))]
    counted = Counter(zip(sampled.column("label"), sampled.column("caption"), strict=True))
    of_label: dict[str | None, list[str]] = {}
    for (label, caption), _ in sorted(counted.items(), key=lambda item: (-item[1], item[0][1] or "")):
        if caption:
            of_label.setdefault(label, []).append(caption)
    turns = zip_longest(*(captions[:PROMPTS] for captions in of_label.values()))
    return list(dict.fromkeys(caption for turn in turns for caption in turn if caption))[:PROMPTS]
