"""Evidence for a ranking: exact parts by timestep and block, stability, hubs, near-duplicates.

Scores are linear in the query's feature, and the feature is a sum over (timestep, draw) pairs and
over blocks of the network; so a score that is linear in the query splits exactly into parts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dtrak.analysis.comparison import ranks
from dtrak.analysis.significance import Null, standardise
from dtrak.gradients.extractor import network_blocks
from dtrak.gradients.narrow import narrowed
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

RESAMPLES = 40
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


def split_by_timestep(
    attributor: Attributor, setting: Setting, query: Query, features: Features, rows: Sequence[int] | None = None
) -> Split:
    """Split the scores of some training images, or of all, by (timestep, draw) pair of the query.

    Raises:
        DtrakError: the setting's timesteps are not stored separately, or its score is not a sum of parts.
    """
    method, side, readout, damping = linear(attributor, setting)
    if not side.apart:
        raise DtrakError(
            "The timesteps of this setting are not stored separately.",
            hint="Set apart: true for this feature set and build.",
        )
    parts = attributor.query_parts(side, features)
    used = [p for source in side.sources for p, w in zip(source.config.pairs(), source.weights, strict=True) if w]
    scores = _part_scores(method.divided_by(setting), readout, damping, parts, rows)
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
    method, side, readout, damping = linear(attributor, setting)
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
    method, side, readout, _ = linear(attributor, setting)
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


def linear(attributor: Attributor, setting: Setting) -> tuple[GradientMethod, Side, Readout, float | None]:
    """The method of a setting whose score is linear in one model's features, these features, and λ.

    Raises:
        DtrakError: the score is no such sum, or features are missing.
    """
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
