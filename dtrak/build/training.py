"""Training a study's model with its data prepared and its base trained first; resumable."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from dtrak.build.pipeline import prepare_data
from dtrak.study.folder import StudyFolder, base_study, needs_training
from dtrak.training.loop import Progress
from dtrak.training.study import train_member, train_study
from dtrak.utils.progress import progress

logger = logging.getLogger(__name__)


def train_model(folder: StudyFolder, device: str = "cpu") -> Path:
    """Train the model, and first its base if that is needed; returns the last checkpoint's folder.

    Raises:
        DtrakError: the data cannot be read, or the study does not say how to train.
    """
    base = base_study(folder.study)
    chain = [StudyFolder(base)] if base and needs_training(StudyFolder(base)) else []
    for part in [*chain, folder]:
        prepare_data(part)
        with _reporting(f"train {part.study.name}", part) as report:
            paths = train_study(part, report, device=device)
        logger.info("Model of '%s': %s", part.study.name, paths[-1])
    return paths[-1]


def train_ensemble_member(folder: StudyFolder, member: int, device: str = "cpu") -> Path:
    """Train one member of the ensemble on a random half of the data; returns its folder.

    Args:
        member: its number, from 1.
    """
    prepare_data(folder)
    with _reporting(f"train member {member}", folder) as report:
        path = train_member(folder, member, report, device)
    logger.info("Member %d of '%s': %s", member, folder.study.name, path)
    return path


@contextlib.contextmanager
def _reporting(title: str, folder: StudyFolder) -> Iterator[Callable[[Progress], None]]:
    with progress(title, folder.study.training.steps) as advance:
        yield lambda step: advance(step.step, f"loss {step.loss:.4f}")
