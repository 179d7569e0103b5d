"""Training a study's model: on the whole training set, on a random half, or with a modified recipe."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from dtrak.config import TrainingConfig
from dtrak.models.base import DiffusionModel
from dtrak.models.codec import VaeCodec
from dtrak.models.conditioner import ClassConditioner
from dtrak.models.families.weights import state_digest
from dtrak.models.loading import load_any, suggested_prompts
from dtrak.models.lora import add_lora
from dtrak.models.pixel import PixelModel, new_scheduler, new_unet
from dtrak.study.folder import LATENTS, StudyFolder, base_path, member_name, weights_digest
from dtrak.training import loop
from dtrak.utils.errors import DtrakError
from dtrak.utils.files import digest, exclusive, has_room, write_bytes, write_json
from dtrak.utils.noise import keyed_generator


def initial_model(folder: StudyFolder, device: torch.device | str = "cpu") -> DiffusionModel:
    """The model at the start of training: newly initialised, or the base model with a new LoRA.

    Raises:
        DtrakError: the base model is missing or does not suit the recipe.
    """
    return _initial_model(folder).to(device)


def _initial_model(folder: StudyFolder) -> DiffusionModel:
    study = folder.study
    labels = folder.table.labels
    if study.model.kind == "text-to-image" and study.training.method != "lora":
        raise DtrakError("Text-to-image models can only be tuned by LoRA.", hint="Set training.method: lora.")
    torch.manual_seed(study.training.seed)
    if study.model.unet:
        offset = 0 if study.model.null_class is None else 1
        classes = study.model.classes or {label: i + offset for i, label in enumerate(labels)}
        return PixelModel(
            new_unet(study.model.unet),  # type: ignore[arg-type]
            new_scheduler(),
            study.resolution,
            classes,
            study.model.null_class,
        )
    model = load_any(study, base_path(study), None, suggested_prompts(folder))
    if isinstance(model.conditioner, ClassConditioner):
        model.conditioner.learn(labels)
    if study.training.method == "lora":
        return add_lora(model, study.training)
    return model


def training_run(
    folder: StudyFolder,
    config: TrainingConfig,
    place: Path | None = None,
    weights: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> loop.Run:
    """A training run of the study's model with the recipe ``config``.

    Args:
        place: folder of its state; None saves no state.
        weights: weights of the training images, default ones; 0 excludes an image.

    Raises:
        DtrakError: the data are not prepared, or the base model is missing.
    """
    model = initial_model(StudyFolder(folder.study.model_copy(update={"training": config})), device)
    table = folder.table
    inputs = _training_inputs(folder, model, config.flip)
    return loop.Run(model, config, inputs, table.train_ids, table.names[: table.train_size], place, weights)


def _training_inputs(folder: StudyFolder, model: DiffusionModel, flips: bool) -> Float[Tensor, "n *kept"]:
    """What the codec makes of all training images; what a VAE makes of them is kept for the next training."""
    table = folder.table
    pixels = table.pixels[: table.train_size]
    if not isinstance(model.codec, VaeCodec):
        return model.codec.training_inputs(pixels, flips)
    made = [state_digest(model.codec.vae), table.fingerprint(), flips, model.device.type]
    path = folder.root / LATENTS / f"{digest(made)}.safetensors"
    if path.is_file():
        with contextlib.suppress(SafetensorError, KeyError):  # damaged: encode them again
            return load_file(path)["inputs"]
    inputs = model.codec.training_inputs(pixels, flips)
    if has_room(folder.root, inputs.nbytes):
        write_bytes(path, save({"inputs": inputs}))
    return inputs


def train_study(
    folder: StudyFolder,
    report: Callable[[loop.Progress], None] = lambda progress: None,
    on_save: Callable[[DiffusionModel, int], None] = lambda model, step: None,
    device: torch.device | str = "cpu",
) -> list[Path]:
    """Train the study's model, or resume its training; returns the checkpoints' directories.

    Args:
        report: called after each step.
        on_save: called with the model, carrying the averaged weights, and the step each time the state is saved.

    Raises:
        DtrakError: another process works on the study, the data are not prepared, or the base model is missing.
    """
    with exclusive(folder.root, f"study '{folder.study.name}'"):
        config = folder.study.training
        run = training_run(folder, config, folder.model_dir / "run", device=device)
        model = run.model
        wanted = {round(share * config.steps): f"checkpoint-{share:.2f}" for share in config.checkpoints}

        def at_step(step: int) -> None:
            if step in wanted:
                with run.averaged_weights():
                    model.save(folder.model_dir / wanted[step], torch.float16)
            if step % config.save_every == 0:
                with run.averaged_weights():
                    on_save(model, step)

        run.train(report, at_step)
        names = [wanted[step] for step in sorted(wanted)]
        paths = [folder.model_dir / name for name in names]
        content = {
            "checkpoints": names,
            "config": config.model_dump(mode="json"),
            "data": folder.table.fingerprint(),
            "weights": {path.name: weights_digest(path) for path in paths},
        }
        write_json(folder.model_dir / "training.json", content)
        return paths


def half_mask(ids: Sequence[str], number: int) -> Bool[np.ndarray, " n"]:
    """The mask of a random half of the training set, keyed by ``number``."""
    mask = np.zeros(len(ids), dtype=bool)
    mask[keyed_generator("half", number, "").permutation(len(ids))[: len(ids) // 2]] = True
    return mask


def train_member(
    folder: StudyFolder,
    number: int,
    report: Callable[[loop.Progress], None] = lambda progress: None,
    device: torch.device | str = "cpu",
) -> Path:
    """Train an ensemble member, or resume its training: the study's recipe on a random half, for as many epochs.

    The other half is excluded by weight 0, so a step sees about half a batch (see
    :class:`dtrak.training.loop.KeyedBatches`).

    Raises:
        DtrakError: another process works on the study, the data are not prepared, or the base model is missing.
    """
    with exclusive(folder.root, f"study '{folder.study.name}'"):
        path, table = folder.model_dir / member_name(number), folder.table
        mask = half_mask(table.train_ids, number)
        run = training_run(folder, folder.study.training, path / "run", torch.from_numpy(mask).float(), device)
        run.train(report)
        with run.averaged_weights():
            run.model.save(path, torch.float16)
        used = [sample for sample, kept in zip(table.train_ids, mask, strict=True) if kept]
        content = {"number": number, "images": len(used), "precision": folder.study.training.precision}
        write_json(path / "member.json", {**content, "data": table.fingerprint()})
        return path
