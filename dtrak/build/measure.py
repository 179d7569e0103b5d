"""Evaluating a study's methods against its retrained models."""

import contextlib
import logging

from dtrak.build.features import ablation_parts, evaluation_sets
from dtrak.build.pipeline import compute_features
from dtrak.evaluation.measure import evaluate, family_rows, judges
from dtrak.evaluation.naming import naming
from dtrak.evaluation.results import Row, load_evaluation, save_evaluation
from dtrak.execution.engines import Engine
from dtrak.methods.attributor import Attributor
from dtrak.methods.settings import Setting
from dtrak.study.folder import StudyFolder
from dtrak.utils.errors import DtrakError
from dtrak.utils.progress import progress

NAMED = ("dtrak", "trak", "pixel-rbf-label")  # methods whose significance test is checked, and what pixels name
logger = logging.getLogger(__name__)


def evaluate_study(
    folder: StudyFolder, engine: Engine, batch_size: int = 16, device: str = "cpu", missing_only: bool = False
) -> list[Row]:
    """Compute the LDS of each available method and each ablation setting, and store the results.

    Args:
        missing_only: keep results that were measured before, or came with the study, for this model and these data;
            then only the queries' features are computed, which the Ablate page needs.

    Raises:
        DtrakError: there are too few retrained models.
    """
    attributor = Attributor(folder, device)
    truth, asked = judges(attributor)
    logger.info("Features of the evaluation queries:")
    compute_features(folder, ablation_parts(evaluation_sets(folder)), engine, batch_size, device)
    known = load_evaluation(folder) if missing_only else None
    if known is not None and not known.stale:
        logger.info("Kept the results of %s.", known.behind["measured"])
        return list(known.rows)
    with progress("evaluate", None) as show:
        rows = evaluate(attributor, report=lambda what, done, total: show(done, what, total))
    fitted = None if attributor.why_not("datamodel") else attributor.subsets("fit")
    named = []
    for method in NAMED:
        with contextlib.suppress(DtrakError):  # not built
            named.append(naming(attributor, Setting(method), truth, asked))
    save_evaluation(folder, rows, truth, fitted, family_rows(attributor, rows, asked), named)
    return rows
