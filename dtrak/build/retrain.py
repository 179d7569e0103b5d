"""Training subset models on an engine, one model per task; resumable."""

import contextlib
from collections.abc import Callable
from typing import Literal

from dtrak.config import Study
from dtrak.evaluation.subsets import SubsetModel, is_done, query_set, retrain
from dtrak.execution.engines import Engine
from dtrak.execution.share import Share
from dtrak.methods.subsets import Family, belongs_to
from dtrak.study.folder import StudyFolder, check_retrainable
from dtrak.utils.files import exclusive, remove_leftovers

Precision = Literal["fp32", "bf16"]


def retrain_subsets(
    folder: StudyFolder,
    family: Family,
    subsets: int,
    seeds: int,
    engine: Engine,
    precision: Precision | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
    drawing: Callable[[int, int], None] = lambda done, total: None,
    device: str = "cpu",
    share: Share | None = None,
) -> int:
    """Train and evaluate the missing of ``subsets × seeds`` models, and return how many were missing.

    All subsets are trained with the first seed before any with the second.

    Args:
        report: called with (models done, total models).
        drawing: called before that with (queries generated, total queries).
        share: train only these models; several processes may then work at once, if the queries exist.

    Raises:
        DtrakError: another process retrains the study, or its training is not described.
    """
    what = f"the ground truth of '{folder.study.name}'"
    with exclusive(folder.root / "truth", what) if share is None else contextlib.nullcontext():
        check_retrainable(folder)
        remove_leftovers(folder.root / "truth")
        if share is None:
            query_set(folder, drawing, device)
        if family == "creators":
            subsets = min(subsets, len(folder.table.train_records.distinct("creator")))
        wanted = [SubsetModel(family, number, seed) for seed in range(seeds) for number in range(subsets)]
        wanted = [subset for place, subset in enumerate(wanted) if share is None or share.has(place)]
        now = belongs_to(folder)
        missing = [subset for subset in wanted if not is_done(folder, subset, now)]
        done = len(wanted) - len(missing)
        report(done, len(wanted))
        with contextlib.closing(engine.results(_retrainer, (folder.study, precision, device), missing)) as results:
            for _ in results:
                done += 1
                report(done, len(wanted))
        return len(missing)


def _retrainer(study: Study, precision: Precision | None, device: str) -> Callable[[SubsetModel], None]:
    folder = StudyFolder(study)
    return lambda subset: retrain(folder, subset, precision, device)
