"""Evaluating a study's methods against its retrained models."""

import logging

from dtrak.build.features import ablation_parts, evaluation_sets
from dtrak.build.pipeline import compute_features
from dtrak.evaluation.measure import evaluate, judges
from dtrak.evaluation.results import Row, save_evaluation
from dtrak.execution.engines import Engine
from dtrak.methods.attributor import Attributor
from dtrak.study.folder import StudyFolder
from dtrak.utils.progress import progress

logger = logging.getLogger(__name__)


def evaluate_study(folder: StudyFolder, engine: Engine, batch_size: int = 16, device: str = "cpu") -> list[Row]:
    """Compute the LDS of each available method and each ablation setting, and store the results.

    Raises:
        DtrakError: there are too few retrained models.
    """
    attributor = Attributor(folder, device)
    truth, _ = judges(attributor)
    logger.info("Features of the evaluation queries:")
    compute_features(folder, ablation_parts(evaluation_sets(folder)), engine, batch_size, device)
    with progress("evaluate", None) as show:
        rows = evaluate(attributor, report=lambda what, done, total: show(done, what, total))
    fitted = None if attributor.why_not("datamodel") else attributor.subsets("fit")
    save_evaluation(folder, rows, truth, fitted)
    return rows
