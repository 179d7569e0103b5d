"""The build status of a study and the commands still to run; reads no weights and does not import torch."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dtrak.index.store import FeatureStore, index_is_built
from dtrak.study.folder import StudyFolder, needs_training, not_fetched
from dtrak.utils.errors import DtrakError
from dtrak.utils.files import read_note, write_json
from dtrak.utils.text import in_words

NOTE, NOTE_EVERY, NOTE_VALID = "building.json", 2.0, 120.0  # seconds between writes, and until it counts as stale


def study_status(folder: StudyFolder) -> dict[str, str]:
    """The status of each part of a study, in a few words."""
    study = folder.study
    prepared = (folder.data / "report.json").exists()
    stores = _stores(folder)
    indexes = built_indexes(folder)
    report = read_note(folder.data / "report.json") if prepared else {}
    return {
        "name": study.name,
        "title": study.title,
        "data": f"{report['train']} training images, {report['heldout']} held out" if prepared else "not prepared",
        "model": "not trained" if needs_training(folder) else "not downloaded" if not_fetched(study) else "ready",
        "features": _features_status(stores),
        "index": f"{len(indexes)} built" if indexes else "not built",
    }


def built_indexes(folder: StudyFolder) -> list[Path]:
    """The folders of the study's complete indexes."""
    return [path.parent for path in folder.index.glob("*/manifest.json") if index_is_built(path.parent)]


def commands_left(folder: StudyFolder) -> list[str]:
    """The commands still to run before a study is ready for queries."""
    name = folder.study.name
    left = ["prepare"] if not (folder.data / "report.json").exists() or not_fetched(folder.study) else []
    left += ["train"] if needs_training(folder) else []
    left += ["build"] if not built_indexes(folder) else []
    return [f"python -m index_builder {command} {name}" for command in left]


@dataclass(frozen=True)
class Building:
    """The progress of a build that is running.

    Attributes:
        part: what it computes now.
        done, total: parts of all feature sets.
        seconds_left: estimated; None at the start.
    """

    part: str
    done: int
    total: int
    seconds_left: float | None

    @property
    def text(self) -> str:
        """As shown."""
        left = "" if self.seconds_left is None else f", about {in_words(self.seconds_left)} left"
        return f"Computing {self.part}: {self.done} of {self.total} parts{left}"


@contextlib.contextmanager
def building_note(folder: StudyFolder) -> Iterator[Callable[[str, int, int], None]]:
    """Record the progress of a build where the app can read it; yields the function to call."""
    path, start = folder.root / NOTE, time.time()
    first: list[int] = []
    written = 0.0

    def note(part: str, done: int, total: int) -> None:
        nonlocal written
        if not first:
            first.append(done)
        if time.time() - written < NOTE_EVERY:
            return
        written = time.time()
        passed, steps = written - start, done - first[0]
        left = passed * (total - done) / steps if steps else None
        write_json(path, {"part": part, "done": done, "total": total, "seconds_left": left, "at": written})

    try:
        yield note
    finally:
        path.unlink(missing_ok=True)


def building(folder: StudyFolder) -> Building | None:
    """The running build's progress; None if none is running, or it was killed."""
    content = read_note(folder.root / NOTE)
    if not content or time.time() - content["at"] > NOTE_VALID:
        return None
    return Building(content["part"], content["done"], content["total"], content["seconds_left"])


def _stores(folder: StudyFolder) -> list[FeatureStore]:
    found = []
    for path in sorted(folder.features.glob("*/manifest.json")):
        with contextlib.suppress(DtrakError):  # damaged; verify names it
            found.append(FeatureStore.open(path.parent))
    return found


def _features_status(stores: list[FeatureStore]) -> str:
    if not stores:
        return "not built"
    complete = sum(store.complete for store in stores)
    text = f"{complete} sets, {sum(s.size for s in stores) / 1e6:.0f} MB"
    return text + (f"; {len(stores) - complete} more are begun" if complete < len(stores) else "")
