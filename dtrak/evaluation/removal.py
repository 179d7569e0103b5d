"""Training again without some images: the study's recipe from the same seed, and the pictures that come of it.

Everything random is keyed by sample (see :mod:`dtrak.training`), so a retrained model differs from
the one that saw all images by the missing images alone. A retrained model is one folder,

    retrained/<name>/removal.json                what was left out, how it was trained, that it is finished
    retrained/<name>/model/                      its weights, where only an adapter was tuned
    retrained/<name>/<settings>.npy              the pictures it drew

whose name is a digest of what makes it: nothing is trained twice, and a killed run resumes.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from dtrak.config import TrainingConfig
from dtrak.files import digest, write_json, write_npy
from dtrak.models import DiffusionModel, load_model, save_model
from dtrak.processes import SPAWN, in_processes
from dtrak.sampling import GenerationSettings, sample
from dtrak.studies import StudyFolder, base_path, initial_model
from dtrak.threads import one_thread
from dtrak.training import Run

Pixels = UInt8[np.ndarray, "n r r 3"]


@dataclass(frozen=True)
class Removal:
    """A retraining without some images, by what makes it.

    Attributes:
        removed: ids of training images, sorted.
        steps: of the training; fewer than the study's recipe shorten its schedule.
        precision: "fp32" or "bf16".
    """

    removed: tuple[str, ...]
    steps: int
    seed: int
    precision: str

    @classmethod
    def of(cls, folder: StudyFolder, removed: Sequence[str], steps: int | None, precision: str | None) -> "Removal":
        """The study's own recipe without ``removed``, or a shorter one."""
        recipe = folder.study.training
        return cls(tuple(sorted(removed)), steps or recipe.steps, recipe.seed, precision or recipe.precision)

    def folder(self, study: StudyFolder) -> Path:
        """Where the retrained model is kept."""
        return study.root / "retrained" / digest([asdict(self), study.table.fingerprint()])

    def recipe(self, study: StudyFolder) -> TrainingConfig:
        """The study's recipe, its warm-up shortened with its steps."""
        config = study.study.training
        warmup = round(config.warmup * self.steps / config.steps)
        return config.model_copy(update={"steps": self.steps, "warmup": warmup, "precision": self.precision})

    def epochs(self, study: StudyFolder) -> float:
        """How often the training sees each image."""
        return self.steps * study.study.training.batch_size / study.table.train_size


def is_drawn(folder: StudyFolder, removal: Removal, settings: GenerationSettings) -> bool:
    """Whether a retrained model has drawn this picture already."""
    return _picture(folder, removal, settings).exists()


def drawn(folder: StudyFolder, removal: Removal, settings: Sequence[GenerationSettings]) -> Pixels:
    """Pictures that a retrained model has drawn."""
    return np.stack([np.load(_picture(folder, removal, s)) for s in settings])


def draw_without(
    folder: StudyFolder,
    removal: Removal,
    settings: Sequence[GenerationSettings],
    report: Callable[[int], None] = lambda step: None,
) -> None:
    """Train without some images, unless that was done before, and draw what is missing of some pictures.

    Args:
        report: called with the steps done; what it raises ends the training.
    """
    missing = [s for s in settings if not is_drawn(folder, removal, s)]
    if not missing:
        return
    with one_thread():
        model = _trained(folder, removal, report)
        for one in missing:
            for step in sample(model, [one.seed], one.steps, [one.label], one.guidance):
                last = step
            write_npy(_picture(folder, removal, one), model.decode(last.x)[0])


def _trained(folder: StudyFolder, removal: Removal, report: Callable[[int], None]) -> DiffusionModel:
    place, study = removal.folder(folder), folder.study
    if (place / "removal.json").exists() and (place / "model").exists():
        return _kept(folder, place)
    config = removal.recipe(folder)
    model = initial_model(StudyFolder(study.model_copy(update={"training": config})))
    table = folder.table
    latents = model.encode(table.pixels[: table.train_size])
    classes = model.class_tensor([r.label for r in table.records[: table.train_size]])
    gone = set(removal.removed)
    weights = torch.tensor([0.0 if i in gone else 1.0 for i in table.train_ids])
    run = Run(model, config, latents, table.train_ids, classes, weights=weights)

    run.train(lambda progress: report(progress.step))
    run.use_average()
    if config.method == "lora":
        save_model(model, place / "model")
    write_json(place / "removal.json", asdict(removal))
    return _kept(folder, place) if config.method == "lora" else model


def _kept(folder: StudyFolder, place: Path) -> DiffusionModel:
    study = folder.study
    return load_model(base_path(study), study.resolution, place / "model", study.model.classes, study.model.null_class)


def _picture(folder: StudyFolder, removal: Removal, settings: GenerationSettings) -> Path:
    return removal.folder(folder) / f"{digest(settings.as_dict())}.npy"


@dataclass(frozen=True)
class Task:
    """One retrained model and the pictures wanted of it."""

    removal: Removal
    settings: tuple[GenerationSettings, ...]


def draw_all(
    folder: StudyFolder,
    tasks: Sequence[Task],
    workers: int,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Retrain and draw what is missing of several tasks.

    Args:
        workers: processes of one thread each; 1 works in this one.
        report: called with (steps trained, steps in all) as they pass; what it raises stops every training.
    """
    left = [t for t in tasks if not all(is_drawn(folder, t.removal, s) for s in t.settings)]
    total = sum(task.removal.steps for task in tasks)
    finished = total - sum(task.removal.steps for task in left)
    report(finished, total)
    if workers == 1:
        for task in left:

            def advance(step: int, before: int = finished) -> None:
                report(before + step, total)

            draw_without(folder, task.removal, task.settings, advance)
            finished += task.removal.steps
    elif left:
        steps, stop = SPAWN.Array("i", len(left)), SPAWN.Event()

        def meanwhile() -> None:
            try:
                report(finished + sum(steps), total)  # type: ignore[call-overload]
            except BaseException:
                stop.set()
                raise

        numbered = [(number, folder, task) for number, task in enumerate(left)]
        for _ in in_processes(_in_process, numbered, workers, _share, (steps, stop), meanwhile):
            pass
    report(total, total)


class _Stopped(Exception):
    """Raised inside a training whose parent asked it to stop."""


_shared: tuple[Any, Any] | None = None  # steps of each task, and the wish to stop


def _share(steps: Any, stop: Any) -> None:
    global _shared
    _shared = steps, stop


def _in_process(numbered: tuple[int, StudyFolder, Task]) -> None:
    number, folder, task = numbered
    assert _shared is not None
    steps, stop = _shared

    def report(step: int) -> None:
        steps[number] = step
        if stop.is_set():
            raise _Stopped

    draw_without(folder, task.removal, task.settings, report)
    steps[number] = task.removal.steps
