"""The significance test: whether a query's scores exceed those of images that no training image shaped.

The unrelated images are those of :mod:`dtrak.data.unrelated`.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from dtrak.data.unrelated import NAMES, kinds_of
from dtrak.methods.attributor import Attributor
from dtrak.methods.query import unrelated_queries
from dtrak.methods.registry import METHODS
from dtrak.methods.settings import Setting
from dtrak.utils.errors import DtrakError

MOST_SCORES = 2**27  # of the null in memory; larger studies use fewer unrelated images
FEWEST = 20  # unrelated images of each kind, for studies of any size; fewer cannot reach 5 %
HUB_PLACES = 50
LEVEL = 0.05  # family-wise error of the significance test

Scores = Float[np.ndarray, " n"]


@dataclass(frozen=True)
class Null:
    """The null distribution: the scores of unrelated images, by kind of image.

    The scores of each image are standardised to mean 0 and standard deviation 1 over the training images. Then
    each training image's own mean and standard deviation over the unrelated images are taken out, so that an
    image that scores high for everything is not significant. The statistic of a query is its largest such score.

    Attributes:
        mean, spread: mean and standard deviation of each training image's z-scores over the unrelated images.
        tops: the statistic of each unrelated image by kind, ascending; computed without the image's own part in
            ``mean`` and ``spread``.
        first: the top rows of each unrelated image, strongest first.
    """

    mean: Float[np.ndarray, " n"]
    spread: Float[np.ndarray, " n"]
    tops: dict[str, Float[np.ndarray, " images"]]
    first: Int[np.ndarray, "q places"]

    @classmethod
    def of(cls, lists: Float[np.ndarray, "q n"], kinds: Sequence[str]) -> "Null":
        """From the scores of unrelated images [Q, N] and the kind of each."""
        z = standardise(lists)
        mean, spread = z.mean(0), z.std(0)
        places = min(HUB_PLACES, lists.shape[1])
        first = np.argpartition(-z, places - 1, axis=1)[:, :places]
        order = np.argsort(-np.take_along_axis(z, first, 1), axis=1, kind="stable")
        tops = defaultdict[str, list[float]](list)
        for row, kind in zip(z, kinds, strict=True):
            others, apart = without_own(row, mean, spread, len(z))
            tops[kind].append(float(((row - others) / _floored(apart)).max()))
        by_kind = {kind: np.sort(values) for kind, values in tops.items()}
        return cls(mean, _floored(spread), by_kind, np.take_along_axis(first, order, 1))

    @property
    def size(self) -> int:
        """Number of unrelated images."""
        return sum(map(len, self.tops.values()))

    @property
    def text(self) -> str:
        """What it consists of, in words."""
        return ", ".join(f"{len(tops)} {NAMES.get(kind, kind)}" for kind, tops in self.tops.items())

    def statistic(self, scores: Scores) -> Scores:
        """The statistic of each training image."""
        return (standardise(scores) - self.mean) / self.spread

    def judge(self, scores: Scores) -> "Verdict":
        """The significance of a query's scores."""
        statistic = self.statistic(scores)
        p_values = np.max([rank_p(tops, statistic) for tops in self.tops.values()], axis=0)
        return Verdict(float(p_values.min()), p_values, self.text, self.size)


@dataclass(frozen=True)
class Verdict:
    """The outcome of the significance test for one query.

    Attributes:
        p_value: of the null hypothesis that no training image shaped the query more than an unrelated image.
        p_values: of each training image, corrected for all training images (family-wise, by the maximum).
        null: the unrelated images, in words.
        null_size: number of unrelated images.
    """

    p_value: float
    p_values: Float[np.ndarray, " n"]
    null: str
    null_size: int

    @property
    def named(self) -> Bool[np.ndarray, " n"]:
        """Which training images are significant at 5 % family-wise."""
        return self.p_values <= LEVEL

    def as_dict(self, ids: Sequence[str]) -> dict[str, Any]:
        """As JSON-serialisable data.

        Args:
            ids: of the training images.
        """
        named = np.flatnonzero(self.named)
        order = named[np.argsort(self.p_values[named], kind="stable")]
        return {
            "p_value": float(f"{self.p_value:.4g}"),
            "null": self.null,
            "null_size": self.null_size,
            "named": [ids[row] for row in order],
        }


def without_own(
    own: Float[np.ndarray, "*q n"], mean: Float[np.ndarray, " n"], spread: Float[np.ndarray, " n"], count: int
) -> tuple[Float[np.ndarray, "*q n"], Float[np.ndarray, "*q n"]]:
    """Mean and standard deviation of the others, in closed form from those of all.

    Args:
        own: what is left out.
        mean, spread: of all ``count``.
    """
    others = (count * mean - own) / (count - 1)
    variance = (count * (spread**2 + mean**2) - own**2) / (count - 1) - others**2
    return others, np.sqrt(np.maximum(variance, 0))


def rank_p(tops: Float[np.ndarray, " images"], statistic: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """(1 + number of null statistics at least as large) / (1 + number of null statistics), which ascend."""
    at_least = len(tops) - np.searchsorted(tops, statistic, side="left")
    return (1 + at_least) / (1 + len(tops))


def _floored(spread: Scores) -> Scores:
    """Standard deviations, at least a tenth of their median: a near-constant image would divide by almost 0."""
    return np.maximum(spread, 0.1 * float(np.median(spread)) or 1.0)


def standardise(scores: Float[np.ndarray, "*q n"]) -> Float[np.ndarray, "*q n"]:
    """Scores with mean 0 and standard deviation 1 over the training images."""
    spread = scores.std(-1, keepdims=True)
    return (scores - scores.mean(-1, keepdims=True)) / np.where(spread > 0, spread, 1.0)


def null_of(attributor: Attributor, setting: Setting) -> Null:
    """The null distribution of a setting, from the unrelated images of the study.

    Raises:
        DtrakError: the method has no significance test, or features are not built.
    """
    return Null.of(*unrelated_scores(attributor, setting))


def unrelated_scores(attributor: Attributor, setting: Setting) -> tuple[Float[np.ndarray, "q n"], list[str]]:
    """The scores of the unrelated images of a study, and the kind of each.

    Raises:
        DtrakError: the method has no significance test, or features are not built.
    """
    method = METHODS[setting.method]
    if not method.tested:
        raise DtrakError(f"{method.title} is not compared with unrelated images.", hint="Choose D-TRAK or TRAK.")
    asked = unrelated_queries(attributor.folder)
    kinds = kinds_of(attributor.folder.study)
    most = max(FEWEST * len(set(kinds)), MOST_SCORES // attributor.table.train_size)
    if most < len(kinds):  # every kind in equal parts
        rows = sorted(sorted(range(len(kinds)), key=lambda i: kinds[:i].count(kinds[i]))[:most])
        asked, kinds = asked.take(rows), [kinds[row] for row in rows]
    fixed = setting if method.damping is None or setting.damping else setting.with_(damping=method.damping)
    (lists,) = method.score_matrices(attributor, fixed, asked, [])
    return lists, kinds
