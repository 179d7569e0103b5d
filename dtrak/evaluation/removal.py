"""Retraining without some images, with the study's recipe and seed, and regenerating images.

All randomness is keyed by sample (see :mod:`dtrak.training.loop`), so a retrained model differs from
one trained on all images only through the removed images. Each retrained model has a folder,

    retrained/<name>/removal.json                removed ids and training settings; marks it as finished
    retrained/<name>/model/                      weights, kept only for adapters or if nothing was removed
    retrained/<name>/<settings>.npy              generated images
    retrained/<name>/<settings>.json             the model's loss on that image, if it is an evaluation query

whose name is a digest of the data, the recipe, the base and the removed ids. Images that exist are not
generated again.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from dtrak.config import Study, TrainingConfig
from dtrak.evaluation.subsets import query_losses
from dtrak.execution.engines import Engine, Local
from dtrak.execution.processes import CONTEXT, one_process_each
from dtrak.execution.threads import task_threads
from dtrak.methods.query import Query, load_query_set
from dtrak.models.base import DiffusionModel
from dtrak.models.generation import GenerationSettings
from dtrak.models.loading import load_any
from dtrak.models.sampling import generate
from dtrak.study.folder import StudyFolder, base_path, check_retrainable, recipe_digest
from dtrak.training.study import training_run
from dtrak.utils.errors import DtrakError
from dtrak.utils.files import digest, read_note, write_json, write_npy

Pixels = UInt8[np.ndarray, "n r r 3"]


@dataclass(frozen=True)
class Removal:
    """A retraining without some images.

    Attributes:
        removed: ids of the removed training images, sorted.
        steps: training steps; fewer than the study's shorten the learning rate schedule.
        seed: training seed.
        precision: "fp32" or "bf16".
    """

    removed: tuple[str, ...]
    steps: int
    seed: int
    precision: str

    @classmethod
    def of(cls, folder: StudyFolder, removed: Sequence[str], steps: int | None, precision: str | None) -> "Removal":
        """The study's recipe without ``removed``, with other ``steps`` or ``precision`` if given."""
        recipe = folder.study.training
        return cls(tuple(sorted(removed)), steps or recipe.steps, recipe.seed, precision or recipe.precision)

    def folder(self, study: StudyFolder) -> Path:
        """The folder of the retrained model."""
        return study.root / "retrained" / digest([asdict(self), study.table.fingerprint(), recipe_digest(study)])

    def recipe(self, study: StudyFolder) -> TrainingConfig:
        """The study's recipe with these steps and this seed, and its warm-up scaled in proportion."""
        config = study.study.training
        warmup = round(config.warmup * self.steps / config.steps)
        changes = {"steps": self.steps, "warmup": warmup, "precision": self.precision, "seed": self.seed}
        return config.model_copy(update=changes)

    def epochs(self, study: StudyFolder) -> float:
        """How many times the training passes over the training set."""
        return self.steps / -(-study.table.train_size // study.study.training.batch_size)


def is_drawn(folder: StudyFolder, removal: Removal, settings: GenerationSettings) -> bool:
    """Whether a retrained model has already generated this image."""
    return _picture(folder, removal, settings).exists()


def drawn(folder: StudyFolder, removal: Removal, settings: Sequence[GenerationSettings]) -> Pixels:
    """Images that a retrained model has generated."""
    return np.stack([np.load(_picture(folder, removal, s)) for s in settings])


def draw_without(
    folder: StudyFolder,
    removal: Removal,
    settings: Sequence[GenerationSettings],
    report: Callable[[int], None] = lambda step: None,
    device: str = "cpu",
) -> None:
    """Generate the missing images of a retrained model; train it first if its weights are not stored.

    Args:
        report: called with the number of steps done; an exception from it stops the training.

    Raises:
        DtrakError: the study cannot be retrained.
    """
    missing = [s for s in settings if not is_drawn(folder, removal, s)]
    if not missing:
        return
    with task_threads():
        model = _trained(folder, removal, report, device)
        queries = {query.settings: query for query in _queries(folder)}
        for one in missing:
            picture = _picture(folder, removal, one)
            if query := queries.get(one):
                loss = float(query_losses(model, [query], folder.study.truth).mean())
                write_json(picture.with_suffix(".json"), {"loss": loss})
            write_npy(picture, generate(model, [one])[0])


def loss_of(folder: StudyFolder, removal: Removal, settings: GenerationSettings) -> float | None:
    """The loss of a retrained model on an evaluation query's image; None for other images."""
    return read_note(_picture(folder, removal, settings).with_suffix(".json")).get("loss")


def _queries(folder: StudyFolder) -> list[Query]:
    try:
        return load_query_set(folder).queries
    except DtrakError:  # none yet
        return []


def _trained(folder: StudyFolder, removal: Removal, report: Callable[[int], None], device: str) -> DiffusionModel:
    place = removal.folder(folder)
    if (place / "removal.json").exists() and (place / "model").exists():
        return _kept(folder, place).to(device)
    check_retrainable(folder)
    config = removal.recipe(folder)
    gone = set(removal.removed)
    weights = torch.tensor([0.0 if i in gone else 1.0 for i in folder.table.train_ids])
    run = training_run(folder, config, weights=weights, device=device)
    model = run.model
    run.train(lambda progress: report(progress.step))
    run.use_average()
    keep = config.method == "lora" or not removal.removed
    if keep:
        model.save(place / "model")
    write_json(place / "removal.json", asdict(removal))
    return _kept(folder, place).to(device) if keep else model


def _kept(folder: StudyFolder, place: Path) -> DiffusionModel:
    if folder.study.training.method == "lora":
        return load_any(folder.study, base_path(folder.study), place / "model")
    return load_any(folder.study, place / "model")


def _picture(folder: StudyFolder, removal: Removal, settings: GenerationSettings) -> Path:
    return removal.folder(folder) / f"{digest(settings.as_dict())}.npy"


@dataclass(frozen=True)
class Task:
    """One job: a retrained model and the images to generate with it."""

    removal: Removal
    settings: tuple[GenerationSettings, ...]

    def reads(self, folder: StudyFolder) -> list[Path]:
        """Folders it reads besides the study: the retrained model's (see :mod:`dtrak.study.remote`)."""
        return [self.removal.folder(folder)]


def draw_all(
    folder: StudyFolder,
    tasks: Sequence[Task],
    engine: Engine,
    report: Callable[[int, int], None] = lambda done, total: None,
    device: str = "cpu",
) -> None:
    """Retrain and generate what is missing of several tasks.

    Args:
        report: called with (steps trained, total steps), after each step on the local engine and after each task
            on others; an exception from it stops all trainings.
    """
    left = [t for t in tasks if not all(is_drawn(folder, t.removal, s) for s in t.settings)]
    total = sum(task.removal.steps for task in tasks)
    finished = total - sum(task.removal.steps for task in left)
    report(finished, total)
    if isinstance(engine, Local) and engine.workers > 1 and left:
        steps: Any = CONTEXT.Array("i", len(left))
        numbered = [(number, folder.study, task, device) for number, task in enumerate(left)]
        one_process_each(_in_process, numbered, engine.processes, steps, lambda: report(finished + sum(steps), total))
    else:

        def advance(step: int) -> None:
            report(finished + step, total)

        here = advance if isinstance(engine, Local) else None
        with contextlib.closing(engine.results(_drawer, (folder.study, device, here), left)) as results:
            for done in results:
                finished += done
                report(finished, total)
    report(total, total)


def _drawer(study: Study, device: str, report: Callable[[int], None] | None) -> Callable[[Task], int]:
    folder = StudyFolder(study)

    def draw(task: Task) -> int:
        draw_without(folder, task.removal, task.settings, report or (lambda step: None), device)
        return task.removal.steps

    return draw


def _in_process(numbered: tuple[int, Study, Task, str], steps: Any) -> None:
    number, study, task, device = numbered

    def report(step: int) -> None:
        steps[number] = step

    draw_without(StudyFolder(study), task.removal, task.settings, report, device)
    steps[number] = task.removal.steps
