"""Methods fitted to retrained models: estimates from the losses of subset models of the family ``fit``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from dtrak.methods.base import Features, Method, Scores
from dtrak.utils.errors import DtrakError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    from dtrak.methods.attributor import Attributor
    from dtrak.methods.query import Query
    from dtrak.methods.settings import Setting
    from dtrak.methods.training_side import TrainingSide

ALPHAS = (0.1, 1.0, 10.0)


@dataclass(frozen=True, kw_only=True)
class FittedMethod(Method):
    """An estimate from subset masks and a query's losses.

    Attributes:
        estimate: maps masks [m, n] and losses [m] to scores [n].
    """

    estimate: Callable[..., Scores]
    needs: str = "subset models of the family fit"
    fitted: ClassVar[bool] = True
    tested: ClassVar[bool] = False

    def require(self, study: TrainingSide) -> None:
        """See :class:`Method`."""
        study.subsets("fit")

    def scores(
        self, study: Attributor, setting: Setting, query: Query, features: Features
    ) -> tuple[Scores, float | None]:
        """See :class:`Method`."""
        truth = study.subsets("fit")
        return self.estimate(truth.masks, truth.of(query.id)), None


def empirical_influence(masks: Bool[np.ndarray, "m n"], losses: Float[np.ndarray, " m"]) -> Float[np.ndarray, " n"]:
    """Mean loss of models trained without n minus that of models trained with n; 0 if either group is empty."""
    held = masks.astype(np.float64)
    inside, outside = held.sum(0), (1 - held).sum(0)
    known = (inside > 0) & (outside > 0)
    with_n, without_n = held.T @ losses, (1 - held).T @ losses
    difference = without_n / np.maximum(outside, 1) - with_n / np.maximum(inside, 1)
    return np.where(known, difference, 0.0)


def datamodel(masks: Bool[np.ndarray, "m n"], losses: Float[np.ndarray, " m"]) -> Float[np.ndarray, " n"]:
    """−w of a ridge regression of the loss on the masks, α from {0.1, 1, 10} by 5-fold cross-validation.

    Raises:
        DtrakError: there is only one subset model.
    """
    from sklearn.linear_model import RidgeCV

    if len(masks) < 2:
        raise DtrakError(
            "A datamodel needs at least two subset models.",
            hint="Retrain more of them: python -m index_builder retrain STUDY --family fit",
        )
    folds = min(5, len(masks))
    return -RidgeCV(alphas=ALPHAS, cv=folds).fit(masks.astype(np.float64), losses).coef_


METHODS: tuple[Method, ...] = (
    FittedMethod(
        name="empirical-influence",
        title="Empirical influence",
        estimate=empirical_influence,
        formula="τ(x, n) = mean loss of x over models trained without n − mean over models trained with n",
        source="Feldman & Zhang, NeurIPS 2020",
    ),
    FittedMethod(
        name="datamodel",
        title="Datamodel",
        estimate=datamodel,
        formula="τ(x, n) = −wₙ,  w the ridge regression of the loss of x on which images a model was trained with",
        source="Ilyas et al., ICML 2022",
    ),
)
