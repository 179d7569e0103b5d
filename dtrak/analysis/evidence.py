"""Evidence for a ranking: exact parts by timestep and block, significance test, stability, hubs, near-duplicates.

The significance test compares a query with images that no training image shaped (:mod:`dtrak.data.unrelated`).

Scores are linear in the query's feature, and the feature is a sum over (timestep, draw) pairs and
over blocks of the network; so a score that is linear in the query splits exactly into parts.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dtrak.analysis.comparison import ranks
from dtrak.data.unrelated import NAMES, kinds_of
from dtrak.gradients.extractor import network_blocks
from dtrak.gradients.narrow import narrowed
from dtrak.methods.attributor import Attributor, Features
from dtrak.methods.base import Normaliser
from dtrak.methods.influence import GradientMethod
from dtrak.methods.query import Query, unrelated_queries
from dtrak.methods.readout import Readout
from dtrak.methods.registry import METHODS
from dtrak.methods.selection import Side
from dtrak.methods.settings import Setting
from dtrak.utils.errors import DtrakError
from dtrak.utils.noise import keyed_generator

MOST_SCORES = 2**27  # of the null in memory; larger studies use fewer unrelated images
FEWEST = 20  # unrelated images of each kind, for studies of any size; fewer cannot reach 5 %
HUB_PLACES = 50
RESAMPLES = 40
LEVEL = 0.05  # family-wise error of the significance test
STABLE = 0.5  # images in the top of a smaller share of resamples are faded
DUPLICATE_DISTANCE = 10.0  # root mean square difference of pixel values in 0 to 255
HUB_FACTOR = 5.0  # a hub tops this many times more lists than expected by chance

Scores = Float[np.ndarray, " n"]


@dataclass(frozen=True)
class Split:
    """Scores split into parts.

    Attributes:
        names: display names of the parts.
        scores: one row per part; the rows sum to the scores of the training images (all, or those requested).
        timesteps: the timestep of each part, for a split by timestep; empty otherwise.
    """

    names: list[str]
    scores: Float[np.ndarray, "parts n"]
    timesteps: list[int]


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
        count, tops = len(z), defaultdict[str, list[float]](list)
        for row, kind in zip(z, kinds, strict=True):  # mean and variance of the others, in closed form
            others = (count * mean - row) / (count - 1)
            variance = (count * (spread**2 + mean**2) - row**2) / (count - 1) - others**2
            tops[kind].append(float(((row - others) / _floored(np.sqrt(np.maximum(variance, 0)))).max()))
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
        p_values = np.max([_rank_p(tops, statistic) for tops in self.tops.values()], axis=0)
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


def _rank_p(tops: Float[np.ndarray, " images"], statistic: Scores) -> Scores:
    """(1 + number of null statistics at least as large) / (1 + number of null statistics)."""
    at_least = len(tops) - np.searchsorted(tops, statistic, side="left")
    return (1 + at_least) / (1 + len(tops))


def _floored(spread: Scores) -> Scores:
    """Standard deviations, at least a tenth of their median: a near-constant image would divide by almost 0."""
    return np.maximum(spread, 0.1 * float(np.median(spread)) or 1.0)


def standardise(scores: Float[np.ndarray, "*q n"]) -> Float[np.ndarray, "*q n"]:
    """Scores with mean 0 and standard deviation 1 over the training images."""
    spread = scores.std(-1, keepdims=True)
    return (scores - scores.mean(-1, keepdims=True)) / np.where(spread > 0, spread, 1.0)


def split_by_timestep(attributor: Attributor, setting: Setting, query: Query, features: Features) -> Split:
    """Split the scores of all training images by (timestep, draw) pair of the query.

    Raises:
        DtrakError: the setting's timesteps are not stored separately, or its score is not a sum of parts.
    """
    method, side, readout, damping = _linear(attributor, setting)
    if not side.apart:
        raise DtrakError(
            "The timesteps of this setting are not stored separately.",
            hint="Set apart: true for this feature set and build.",
        )
    parts = attributor.query_parts(side, features)
    used = [p for source in side.sources for p, w in zip(source.config.pairs(), source.weights, strict=True) if w]
    scores = _part_scores(method.divided_by(setting), readout, damping, parts)
    names = [f"t = {t}" + (f", draw {draw + 1}" if draw else "") for t, draw in used]
    order = sorted(range(len(used)), key=lambda i: used[i])
    return Split([names[i] for i in order], scores[order], [used[i][0] for i in order])


def split_by_block(
    attributor: Attributor, setting: Setting, query: Query, features: Features, rows: Sequence[int]
) -> Split:
    """Split the scores of some training images by block of the network.

    Raises:
        DtrakError: the blocks were not computed for this setting, or its score is not a sum of parts.
    """
    method, side, readout, damping = _linear(attributor, setting)
    source = side.sources[0]
    feature = features.get(attributor.needs(setting, query)[0].key)
    whole = len(side.sources) == 1 and source.whole
    if feature is None or feature.blocks is None or not whole:
        raise DtrakError(
            "The split by block is available for the feature sets of the index only.",
            hint="Keep the timesteps, draws and output function at their defaults.",
        )
    blocks = narrowed(feature.blocks.astype(np.float64), side.dim, source.config.projection)
    names = list(network_blocks(list(attributor.variant(setting.checkpoint).parameters())))
    return Split(names, _part_scores(method.divided_by(setting), readout, damping, blocks, rows), [])


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
        raise DtrakError(f"There is no significance test for {method.title}.", hint="Choose D-TRAK or TRAK.")
    asked = unrelated_queries(attributor.folder)
    kinds = kinds_of(attributor.folder.study)
    most = max(FEWEST * len(set(kinds)), MOST_SCORES // attributor.table.train_size)
    if most < len(kinds):  # every kind in equal parts
        rows = sorted(sorted(range(len(kinds)), key=lambda i: kinds[:i].count(kinds[i]))[:most])
        asked, kinds = asked.take(rows), [kinds[row] for row in rows]
    fixed = setting if method.damping is None or setting.damping else setting.with_(damping=method.damping)
    (lists,) = method.score_matrices(attributor, fixed, asked, [])
    return lists, kinds


@dataclass(frozen=True)
class Stability:
    """How a ranking varies under resampling of the query's timesteps and of the projection.

    Attributes:
        share: share of resamples in which each training image is in the top.
        low, high: the 5 % and 95 % quantiles of its rank, from 1.
        resamples: number of resamples.
        top: number of ranks that count as the top.
    """

    share: Float[np.ndarray, " n"]
    low: Float[np.ndarray, " n"]
    high: Float[np.ndarray, " n"]
    resamples: int
    top: int


def stability(attributor: Attributor, setting: Setting, query: Query, features: Features, top: int = 10) -> Stability:
    """Bootstrap the (timestep, draw) pairs of the query, on each half of the projected columns.

    Raises:
        DtrakError: the setting's timesteps are not stored separately, or its score is not a sum of parts.
    """
    method, side, readout, _ = _linear(attributor, setting)
    parts = attributor.query_parts(side, features)
    if len(parts) < 2:
        raise DtrakError(
            "A single timestep cannot be resampled.", hint="Choose more timesteps, stored separately (apart: true)."
        )
    wanted = method.wanted_damping(setting)
    random = keyed_generator("stability", 0, query.id)
    drawn = []
    half = side.dim // 2
    for columns in (slice(0, half), slice(half, 2 * half)) if half else (slice(None),):
        reduced = readout.half(columns)
        damping = reduced.damping(wanted)
        norms = reduced.row_norms(damping, method.divided_by(setting))
        scores = reduced.inner(parts[:, columns], damping) / norms
        counts = random.multinomial(len(parts), np.full(len(parts), 1 / len(parts)), RESAMPLES // 2)
        drawn.append(counts @ scores)
    places = np.stack([ranks(row) for row in np.concatenate(drawn)]) + 1
    return Stability(
        (places <= top).mean(0),
        np.quantile(places, 0.05, axis=0),
        np.quantile(places, 0.95, axis=0),
        len(places),
        top,
    )


@dataclass(frozen=True)
class Hubs:
    """Training images that are in the top of many unrelated rankings.

    Attributes:
        share: share of unrelated rankings with each training image in their top.
        expected: the share expected by chance.
        lists: number of unrelated rankings.
    """

    share: Float[np.ndarray, " n"]
    expected: float
    lists: int

    @property
    def marked(self) -> Bool[np.ndarray, " n"]:
        """Which images are hubs: in the top of far more rankings than expected by chance, and of at least two."""
        return (self.share > HUB_FACTOR * self.expected) & (self.share * self.lists > 1.5)


def hubs(null: Null, top: int = 10) -> Hubs:
    """How often each training image is in the ``top`` (at most 50) of unrelated rankings."""
    share = np.bincount(null.first[:, :top].ravel(), minlength=len(null.mean)) / len(null.first)
    return Hubs(share, min(1.0, top / len(null.mean)), len(null.first))


def damp_hubs(scores: Scores, null: Null) -> Scores:
    """z-scores minus each image's mean z-score over unrelated queries."""
    return standardise(scores) - null.mean


def near_duplicates(
    pixels: UInt8[np.ndarray, "n r r 3"], distance: float = DUPLICATE_DISTANCE
) -> Int[np.ndarray, " n"]:
    """A group number for each image: the first row of its connected component of near-duplicates.

    Args:
        distance: images within this root mean square difference of pixel values (0 to 255) are near-duplicates.
    """
    flat = pixels.reshape(len(pixels), -1).astype(np.float32)
    squares = (flat**2).sum(1)
    pairs = []
    for start in range(0, len(flat), 256):
        block = flat[start : start + 256]
        apart = squares[start : start + 256, None] + squares - 2 * block @ flat.T
        pairs.append(np.add(np.argwhere(apart <= distance**2 * flat.shape[1]), (start, 0)))
    rows, others = np.concatenate(pairs).T
    graph = coo_array((np.ones(len(rows), bool), (rows, others)), (len(flat), len(flat)))
    _, component = connected_components(graph, directed=False)
    _, first = np.unique(component, return_index=True)
    return first[component]


def _linear(attributor: Attributor, setting: Setting) -> tuple[GradientMethod, Side, Readout, float | None]:
    method = METHODS[setting.method]
    if not isinstance(method, GradientMethod) or not method.splits:
        raise DtrakError(
            f"A {method.title} score is not a sum over timesteps or blocks.",
            hint="Choose a method that uses a single model, such as D-TRAK or TRAK.",
        )
    (side,) = attributor.sides(setting)
    readout = attributor.readout(side)
    return method, side, readout, readout.damping(method.wanted_damping(setting))


def _part_scores(
    normaliser: Normaliser,
    readout: Readout,
    damping: float | None,
    parts: Float[np.ndarray, "parts k"],
    rows: Sequence[int] | None = None,
) -> Float[np.ndarray, "parts n"]:
    norms = readout.row_norms(damping, normaliser)
    if normaliser == "cosine":
        norms = norms * (np.linalg.norm(parts.sum(0)) or 1.0)
    if rows is None:
        return readout.inner(parts, damping) / norms
    return readout.inner_of(rows, parts, damping) / norms[list(rows)]
