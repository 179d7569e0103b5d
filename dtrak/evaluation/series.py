"""One picture with more and more of its sources removed: a retraining for each of a series of counts.

Beside each stands the picture without as many random images of the same labels and creators (which may be sources
too): what the sources add is the difference between the two. Results lie in ``truth/removals.json`` and
``truth/removals/``.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dtrak.evaluation.counterfactual import matched
from dtrak.evaluation.removal import Removal, Task, draw_all, drawn
from dtrak.evaluation.results import model_and_data
from dtrak.execution.engines import Engine
from dtrak.methods.attributor import Attributor
from dtrak.methods.query import Query
from dtrak.methods.settings import Setting
from dtrak.models.generation import GenerationSettings
from dtrak.study.folder import StudyFolder, check_retrainable, truth_folders
from dtrak.utils.files import read_json, write_json
from dtrak.utils.images import write_png
from dtrak.utils.noise import keyed_generator

SHARES = (0.0, 0.05, 0.25)  # of the training images
FILE, PICTURES = "removals.json", "removals"


@dataclass(frozen=True)
class Without:
    """A picture after removals.

    Attributes:
        removed: number of removed training images.
        sources: file of the picture without the strongest proponents.
        random: file of the picture without as many random images of the same labels and creators.
    """

    removed: int
    sources: str
    random: str


def removal_series(
    attributor: Attributor,
    query: Query,
    setting: Setting,
    engine: Engine,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Without, ...]:
    """Retrain without the ``SHARES`` strongest proponents of a generated picture, and regenerate it; resumable.

    Args:
        query: a generated picture.
        report: called with (steps trained, total steps).

    Raises:
        DtrakError: the study cannot be retrained.
    """
    folder, table = attributor.folder, attributor.table
    check_retrainable(folder)
    assert query.settings is not None
    scores, _ = attributor.scores(setting, query, attributor.features(query, [setting], by_block=False))
    order = np.argsort(-scores, kind="stable").tolist()
    groups = list(zip(*table.train_groups, strict=True))
    counts = sorted({min(round(share * table.train_size), table.train_size - 2) for share in SHARES})

    def without(rows: list[int]) -> Removal:
        return Removal.of(folder, [table.train_ids[row] for row in rows], None, None)

    plans = []
    for count in counts:
        others = matched(groups, order[:count], keyed_generator("removal series", count, query.id))
        plans.append((count, without(order[:count]), without(others)))
    removals = list(dict.fromkeys(removal for _, *both in plans for removal in both))
    draw_all(folder, [Task(removal, (query.settings,)) for removal in removals], engine, report, attributor.device)
    root, found = truth_folders(folder)[0], []
    for count, *both in plans:
        names = []
        for kind, removal in zip(("sources", "random"), both, strict=True):
            names.append(f"{count:04d}-{kind}.png")
            write_png(root / PICTURES / names[-1], drawn(folder, removal, [query.settings])[0])
        found.append(Without(count, *names))
    behind = {"settings": query.settings.as_dict(), "setting": setting.text, **model_and_data(folder)}
    write_json(root / FILE, {"without": [asdict(one) for one in found], "behind": behind})
    return tuple(found)


def load_series(folder: StudyFolder, settings: GenerationSettings) -> tuple[Path, tuple[Without, ...], str] | None:
    """The folder of the pictures, the removals, and the setting whose proponents were removed.

    None unless a series was measured for this picture, these data and this model.
    """
    now: dict[str, Any] = {"settings": settings.as_dict(), **model_and_data(folder)}
    for root in truth_folders(folder):
        if (root / FILE).exists():
            content = read_json(root / FILE)
            if all(content["behind"][key] == value for key, value in now.items()):
                found = tuple(Without(**one) for one in content["without"])
                return root / PICTURES, found, content["behind"]["setting"]
    return None
