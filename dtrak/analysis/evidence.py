"""What stands behind a ranking: its exact parts, what chance gives, and how stable it is.

Scores are linear in the query's feature, and the feature is a sum over (timestep, draw) pairs and
over blocks of the network; so a score without a norm of the query splits exactly into parts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dtrak.analysis.comparison import ranks
from dtrak.gradients.extractor import network_blocks
from dtrak.methods.attributor import Attributor, Features
from dtrak.methods.base import Normaliser
from dtrak.methods.influence import GradientMethod
from dtrak.methods.query import Query
from dtrak.methods.readout import Readout
from dtrak.methods.registry import METHODS
from dtrak.methods.selection import Side
from dtrak.methods.settings import Setting
from dtrak.utils.errors import DtrakError
from dtrak.utils.noise import keyed_generator

RANDOM_DIRECTIONS = 200
MOST_PRODUCTS, MOST_SCORES = 10**10, 2**27  # of either kind of unrelated query: multiplications, numbers in memory
FEWEST_QUERIES = 20  # of either kind, whatever the size
HUB_PLACES = 50
RESAMPLES = 40
CHANCE = 0.95  # the quantile of the null that a clear source must pass
STABLE = 0.5  # in the top of fewer resamples than this is faded
DUPLICATE_DISTANCE = 10.0  # root mean square difference of pixels, of 255
HUB_FACTOR = 5.0  # times the share of lists that chance gives

Scores = Float[np.ndarray, " n"]


@dataclass(frozen=True)
class Split:
    """A score's parts.

    Attributes:
        names: of the parts, as people read them.
        scores: one row a part; the rows sum to the scores, of all training images or of those asked about.
        timesteps: of each part, for a split by timestep; empty otherwise.
    """

    names: list[str]
    scores: Float[np.ndarray, "parts n"]
    timesteps: list[int]


@dataclass(frozen=True)
class Null:
    """What unrelated queries score, each list brought to mean 0 and deviation 1.

    The queries are held-out images, where the study has their features, and random directions.

    Attributes:
        threshold: what the top z-score of a random direction stays below in 95 % of cases. Held-out images are left
            out of it: a real image may well have a strong source.
        band: for each training image, what 95 % of the held-out images give it at most (of the random directions,
            where there are none).
        mean: for each training image, what these give it on average.
        first: the first rows of each of their lists, the strongest first.
        heldout: how many held-out images there are.
        directions: how many random directions.
    """

    threshold: float
    band: Float[np.ndarray, " n"]
    mean: Float[np.ndarray, " n"]
    first: Int[np.ndarray, "q places"]
    heldout: int
    directions: int

    @classmethod
    def of(cls, lists: Float[np.ndarray, "q n"], heldout: int) -> "Null":
        """From the scores of all queries, the held-out images first."""
        lists = standardise(lists)
        unrelated = lists[:heldout] if heldout else lists
        places = min(HUB_PLACES, lists.shape[1])
        first = np.argpartition(-unrelated, places - 1, axis=1)[:, :places]
        order = np.argsort(-np.take_along_axis(unrelated, first, 1), axis=1, kind="stable")
        tops = lists[heldout:].max(1)
        return cls(
            float(np.quantile(tops, CHANCE)) if tops.size else 0.0,
            np.quantile(unrelated, CHANCE, axis=0),
            unrelated.mean(0),
            np.take_along_axis(first, order, 1),
            heldout,
            len(tops),
        )


def standardise(scores: Float[np.ndarray, "*q n"]) -> Float[np.ndarray, "*q n"]:
    """Mean 0, deviation 1 over the training images."""
    spread = scores.std(-1, keepdims=True)
    return (scores - scores.mean(-1, keepdims=True)) / np.where(spread > 0, spread, 1.0)


def above_chance(scores: Scores, null: Null) -> Bool[np.ndarray, " n"]:
    """Which images score above the top of random directions, and above what they give to unrelated queries."""
    z = standardise(scores)
    return (z > null.threshold) & (z > null.band)


def clear_source(scores: Scores, null: Null) -> bool:
    """Whether any image stands above chance; else there is "no clear source"."""
    return bool(above_chance(scores, null).any())


def split_by_timestep(attributor: Attributor, setting: Setting, query: Query, features: Features) -> Split:
    """The exact parts of the scores by (timestep, draw) pair of the query.

    Raises:
        DtrakError: the setting's timesteps are not kept apart, or its score is not a sum of parts.
    """
    method, side, readout, damping = _linear(attributor, setting)
    if not side.apart:
        raise DtrakError("The timesteps of this setting are not stored apart.", hint="Set apart: true and build.")
    parts = attributor.query_parts(side, features)
    used = [p for source in side.sources for p, w in zip(source.config.pairs(), source.weights, strict=True) if w]
    scores = _part_scores(method.divided_by(setting), readout, damping, parts)
    names = [f"t = {t}" + (f", draw {draw + 1}" if draw else "") for t, draw in used]
    order = sorted(range(len(used)), key=lambda i: used[i])
    return Split([names[i] for i in order], scores[order], [used[i][0] for i in order])


def split_by_block(
    attributor: Attributor, setting: Setting, query: Query, features: Features, rows: Sequence[int]
) -> Split:
    """The exact parts of some training images' scores by block of the network.

    Raises:
        DtrakError: the blocks were not computed for this setting, or its score is not a sum of parts.
    """
    method, side, readout, damping = _linear(attributor, setting)
    source = side.sources[0]
    feature = features.get(attributor.needs(setting, query)[0].key)
    whole = len(side.sources) == 1 and source.whole
    if feature is None or feature.blocks is None or not whole:
        raise DtrakError(
            "The split by block is computed for the feature sets of the index only.",
            hint="Leave the timesteps, draws and output function at their defaults.",
        )
    rescale = np.sqrt(source.config.projection_dim / side.dim)
    blocks = feature.blocks[:, : side.dim].astype(np.float64) * rescale
    names = list(network_blocks(list(attributor.variant(setting.checkpoint).parameters())))
    return Split(names, _part_scores(method.divided_by(setting), readout, damping, blocks, rows), [])


def null_band(attributor: Attributor, setting: Setting) -> Null:
    """Scores of the training images for unrelated queries.

    Held-out images where their features are stored, and random directions; all lists are standardised,
    so that directions of any norm count alike. Large studies take fewer of either.

    Raises:
        DtrakError: the method has no features to draw directions in.
    """
    method = METHODS[setting.method]
    if not isinstance(method, GradientMethod):
        raise DtrakError("The significance test is for methods that use gradients.", hint="Choose one of them.")
    lists = []
    heldout = 0
    sides = attributor.sides(setting)
    rows = attributor.table.train_size
    most = min(max(FEWEST_QUERIES, MOST_PRODUCTS // (rows * sides[0].dim)), max(1, MOST_SCORES // rows))
    try:
        others = [attributor.queries(side) for side in attributor.sides(setting, "heldout")]
        heldout = min(len(queries) for queries in others)
        others = [queries[: heldout : max(1, -(-heldout // most))] for queries in others]
        heldout = len(others[0])
    except DtrakError:
        others = []
    for number, side in enumerate(sides):
        readout = attributor.readout(side)
        damping = readout.damping(method.wanted_damping(setting))
        size = min(RANDOM_DIRECTIONS, most), side.dim
        random = keyed_generator("null", 0, "", number).standard_normal(size)
        queries = np.concatenate([others[number], random]) if others else random
        lists.append(method.row_scores(readout, queries, damping, setting))
    return Null.of(np.mean(lists, axis=0), heldout)


@dataclass(frozen=True)
class Stability:
    """How a ranking moves when what is arbitrary is drawn again.

    Attributes:
        share: of the resamples in which each training image is in the top.
        low, high: the 5 % and 95 % quantiles of its place, from 1.
        resamples: how many.
        top: how many places are the top.
    """

    share: Float[np.ndarray, " n"]
    low: Float[np.ndarray, " n"]
    high: Float[np.ndarray, " n"]
    resamples: int
    top: int


def stability(attributor: Attributor, setting: Setting, query: Query, features: Features, top: int = 10) -> Stability:
    """Places over resampled (timestep, draw) pairs of the query and over both halves of the projection.

    Raises:
        DtrakError: the setting's timesteps are not kept apart, or its score is not a sum of parts.
    """
    method, side, readout, _ = _linear(attributor, setting)
    parts = attributor.query_parts(side, features)
    if len(parts) < 2:
        raise DtrakError("A single timestep cannot be resampled.", hint="Choose more timesteps, stored apart.")
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
    """Images that top many lists.

    Attributes:
        share: of the unrelated lists in whose top each training image is.
        expected: the share that chance gives.
        lists: how many.
    """

    share: Float[np.ndarray, " n"]
    expected: float
    lists: int

    @property
    def marked(self) -> Bool[np.ndarray, " n"]:
        """Which images are hubs: they top more lists than chance lets them, and not a single one."""
        return (self.share > HUB_FACTOR * self.expected) & (self.share * self.lists > 1.5)


def hubs(null: Null, top: int = 10) -> Hubs:
    """Which training images are in the top (of at most 50 places) of many unrelated lists."""
    share = np.bincount(null.first[:, :top].ravel(), minlength=len(null.mean)) / len(null.first)
    return Hubs(share, min(1.0, top / len(null.mean)), len(null.first))


def damp_hubs(scores: Scores, null: Null) -> Scores:
    """z-scores less what each image gets from unrelated queries on average."""
    return standardise(scores) - null.mean


def near_duplicates(
    pixels: UInt8[np.ndarray, "n r r 3"], distance: float = DUPLICATE_DISTANCE
) -> Int[np.ndarray, " n"]:
    """A group number for each image: the lowest row that it is nearly the same as, directly or through others.

    Args:
        distance: root mean square difference of pixel values, of 255.
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
            f"A score of {method.title} is not a sum over timesteps or blocks.",
            hint="Choose a method of one model, such as D-TRAK or TRAK.",
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
