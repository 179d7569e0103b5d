"""Whether the significance test keeps its promise: how often it names sources, and whether retraining agrees."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float64

from dtrak.analysis.significance import Null, null_of, unrelated_scores
from dtrak.evaluation.lds import without_counts
from dtrak.evaluation.measure import score_matrices
from dtrak.evaluation.results import Naming
from dtrak.methods.attributor import Attributor
from dtrak.methods.query import QuerySet
from dtrak.methods.registry import METHODS
from dtrak.methods.settings import Setting
from dtrak.methods.subsets import SubsetTruth

TOP = 10


def naming(attributor: Attributor, setting: Setting, truth: SubsetTruth, asked: QuerySet) -> Naming:
    """Test every evaluation query and every unrelated image.

    Raises:
        DtrakError: the method has no significance test, or features are not built.
    """
    method = METHODS[setting.method]
    fixed = setting if method.damping is None or setting.damping else setting.with_(damping=method.damping)
    null = null_of(attributor, fixed)
    (scores,) = score_matrices(attributor, fixed, asked)
    named = np.stack([null.judge(row).named for row in scores])
    rates = {name: (len(named[part]), int(named[part].any(1).sum())) for name, part in asked.groups.items()}
    rates |= _unrelated_rates(*unrelated_scores(attributor, fixed))
    effects = Effects(truth, attributor.table.train_groups)
    top = np.zeros_like(named)
    np.put_along_axis(top, np.argsort(-scores, axis=1)[:, :TOP], True, axis=1)
    return Naming(setting.method, rates, effects.mean(named & (scores > 0)), effects.mean(top & ~named))


def _unrelated_rates(lists: Float[np.ndarray, "q n"], kinds: Sequence[str]) -> dict[str, tuple[int, int]]:
    """How many unrelated images of each kind have a source named, tested against the other half of them."""
    places = np.array([kinds[:i].count(kind) for i, kind in enumerate(kinds)])
    counts: dict[str, tuple[int, int]] = {}
    for half in (places % 2 == 0, places % 2 == 1):
        null = Null.of(lists[~half], [kind for kind, inside in zip(kinds, half, strict=True) if not inside])
        for row in np.flatnonzero(half).tolist():
            tested, found = counts.get(kinds[row], (0, 0))
            counts[kinds[row]] = tested + 1, found + int(null.judge(lists[row]).named.any())
    return counts


class Effects:
    """The measured influence of training images on queries, from the losses of subset models.

    For a pair it is the mean loss of the models without the image minus that of the models with it, in standard
    deviations of the query's loss over the models, after regressing the loss on the counts of the groups.

    Args:
        groups: for each way of grouping, the group of each training image.
    """

    def __init__(self, truth: SubsetTruth, groups: Sequence[Sequence[str]]):
        left = without_counts(truth.losses, truth.masks, groups)
        spread = left.std(0)
        self._losses = left / np.where(spread > 0, spread, 1.0)
        self._masks = truth.masks.astype(np.float64)

    def pairs(self, models: Bool[np.ndarray, " m"] | None = None) -> Float64[np.ndarray, "q n"]:
        """The influence of every pair; 0 where all models have the image, or none.

        Args:
            models: use only these.
        """
        masks = self._masks if models is None else self._masks[models]
        losses = self._losses if models is None else self._losses[models]
        inside, outside = masks.sum(0), (1 - masks).sum(0)
        known = (inside > 0) & (outside > 0)
        apart = ((1 - masks).T @ losses) / np.maximum(outside, 1)[:, None]
        apart -= (masks.T @ losses) / np.maximum(inside, 1)[:, None]
        return np.where(known[:, None], apart, 0.0).T

    def mean(self, chosen: Bool[np.ndarray, "q n"]) -> tuple[float, ...]:
        """The mean over some pairs, its standard error by the jackknife over models, and the number of pairs."""
        count = int(chosen.sum())
        if not count:
            return ()
        models = len(self._masks)
        left_out = [self.pairs(np.arange(models) != i)[chosen].mean() for i in range(models)]
        error = np.sqrt((models - 1) * np.var(left_out))
        return float(self.pairs()[chosen].mean()), float(error), count
