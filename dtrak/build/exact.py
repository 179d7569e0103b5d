"""Exact influence on the evaluation queries, computed on an engine: some queries per replay; resumable."""

import contextlib
from collections.abc import Callable
from functools import partial

from dtrak.config import Study
from dtrak.evaluation.exact import exact_influence
from dtrak.evaluation.subsets import query_set
from dtrak.execution.engines import Engine
from dtrak.methods.exact import check_exact, stored
from dtrak.study.folder import StudyFolder

TOGETHER = 8  # queries that share a replay: their adjoints are kept at once


def exact_of_evaluation(
    folder: StudyFolder,
    engine: Engine,
    report: Callable[[int, int], None] = lambda done, total: None,
    device: str = "cpu",
) -> float:
    """Compute what is missing of the exact influence on all evaluation queries; returns the largest growth.

    Args:
        report: called with (queries done, total queries).

    Raises:
        DtrakError: the training cannot be differentiated, or its adjoint is no longer finite.
    """
    check_exact(folder)
    queries = query_set(folder, device=device).queries
    missing = [place for place, query in enumerate(queries) if stored(folder, query) is None]
    groups = [tuple(missing[start : start + TOGETHER]) for start in range(0, len(missing), TOGETHER)]
    done, growth = len(queries) - len(missing), 0.0
    report(done, len(queries))
    with contextlib.closing(engine.results(_influencer, (folder.study, device), groups)) as results:
        for group, found in results:
            done, growth = done + group, max(growth, found)
            report(done, len(queries))
    return growth


def _influencer(study: Study, device: str) -> Callable[[tuple[int, ...]], tuple[int, float]]:
    return partial(_influence, StudyFolder(study), device)


def _influence(folder: StudyFolder, device: str, group: tuple[int, ...]) -> tuple[int, float]:
    queries = query_set(folder).queries
    return len(group), exact_influence(folder, [queries[place] for place in group], device=device).growth
