"""Exact influence: the derivative of a query's loss with respect to each training sample's weight.

It takes minutes, so it is computed by ``dtrak exact`` (:mod:`dtrak.evaluation.exact`) and kept in
``workspace/STUDY/exact``; the method reads what is there, or what ships with the study.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from dtrak.methods.base import Features, Method, Scores
from dtrak.utils.errors import DtrakError
from dtrak.utils.files import digest, read_note

if TYPE_CHECKING:
    from dtrak.methods.attributor import Attributor
    from dtrak.methods.query import Query
    from dtrak.methods.settings import Setting
    from dtrak.methods.training_side import TrainingSide
    from dtrak.study.folder import StudyFolder

SMOOTH = 100.0  # growth of the adjoint above which the derivative says little about removals
VERSION = 1  # part of every key: raise it whenever the numbers change


@dataclass(frozen=True, kw_only=True)
class ExactMethod(Method):
    """Reads derivatives that were computed before."""

    needs: str = "a study that was trained here; minutes for each query (dtrak exact)"
    tested: ClassVar[bool] = False
    light: ClassVar[bool] = False
    knows_seed: ClassVar[bool] = True

    def require(self, study: TrainingSide) -> None:
        """See :class:`Method`."""
        check_exact(study.folder)
        if not any(path for folder in _folders(study.folder) for path in folder.glob("*.npy")):
            raise DtrakError(
                "No exact influence is computed yet.",
                hint=f"python -m index_builder exact {study.folder.study.name} --seed 1",
            )

    def scores(
        self, study: Attributor, setting: Setting, query: Query, features: Features
    ) -> tuple[Scores, float | None]:
        """See :class:`Method`."""
        path = stored(study.folder, query)
        if path is None:
            raise DtrakError(
                "The exact influence on this image is not computed.",
                hint=f"python -m index_builder exact {study.folder.study.name}, with this image's seed or file.",
            )
        return np.load(path).astype(np.float64), None


def check_exact(folder: StudyFolder) -> None:
    """Check that the study's training can be differentiated.

    Raises:
        DtrakError: its recipe is not known, or it trains in bfloat16.
    """
    from dtrak.study.folder import check_retrainable

    check_retrainable(folder)
    if folder.study.training.precision == "bf16":
        raise DtrakError(
            "The derivative of a training in bfloat16 is noise.", hint="Set training.precision: fp32 and retrain."
        )


def folder_of(folder: StudyFolder) -> Path:
    """The folder of the results for the present data, recipe and seed."""
    return _folders(folder)[0]


def path_of(folder: StudyFolder, query: Query) -> Path:
    """The file that one query's scores are written to."""
    return folder_of(folder) / _name(query)


def stored(folder: StudyFolder, query: Query) -> Path | None:
    """The file of one query's scores, computed here or shipped with the study; None if there is none."""
    return next((path for place in _folders(folder) if (path := place / _name(query)).exists()), None)


def growth(path: Path) -> float:
    """How much the adjoint grew on its way back through the training; see :data:`SMOOTH`.

    Args:
        path: the file of a query's scores.
    """
    return float(read_note(path.with_suffix(".json")).get("growth", 0.0))


def knows_exactly(folder: StudyFolder, query: Query) -> bool:
    """Whether the exact influence on a query is stored, of a training that is smooth."""
    path = stored(folder, query)
    return path is not None and growth(path) <= SMOOTH


def _folders(folder: StudyFolder) -> list[Path]:
    from dtrak.study.folder import recipe_digest, truth_folders

    depends = [VERSION, folder.table.fingerprint(), recipe_digest(folder), folder.study.training.seed]
    key = digest([*depends, folder.study.truth.timesteps, folder.study.truth.draws])
    shipped = truth_folders(folder)[1:]
    return [folder.root / "exact" / key, *(place / "exact" / key for place in shipped)]


def _name(query: Query) -> str:
    return f"{digest([query.id, query.label])}.npy"


METHODS: tuple[Method, ...] = (
    ExactMethod(
        name="exact",
        title="Exact influence",
        formula="τ(x, n) = −∂L(x; θ_T(w)) / ∂wₙ at w = 1,  w the samples' weights in training",
        source="Ilyas & Engstrom, 2025 (arXiv 2504.16430)",
    ),
)
