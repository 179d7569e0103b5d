"""Choosing an index: an exact one if it fits in memory and is fast, else the first with sufficient recall.

Recall is measured on up to ``SAMPLE`` rows of the study's features if they are built, with queries under the kernel.
Otherwise it is the recall measured on synthetic vectors with the spectrum of real features (docs/scale.md).
"""

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from dtrak.index.indexed_rows import CANDIDATES, FLAT, PROBES, SHARE, IndexedRows, split_white
from dtrak.index.store import FeatureStore
from dtrak.index.whitening import TYPICAL
from dtrak.linalg.conjugate_gradients import fits, solver_choice
from dtrak.linalg.kernel import Kernel
from dtrak.methods.registry import METHODS
from dtrak.methods.training_side import TrainingSide
from dtrak.study.folder import StudyFolder
from dtrak.utils.errors import DtrakError
from dtrak.utils.noise import keyed_generator
from dtrak.utils.text import percent, size_in_words

SAMPLE, QUERIES, TOP = 50_000, 50, 10
SAMPLE_NUMBERS = 2**28
DAMPINGS = {METHODS[name].output: METHODS[name].damping or TYPICAL for name in ("trak", "dtrak")}
PATIENCE = 0.1  # acceptable seconds per search
LOOKUP = 2e-6  # seconds to load one candidate row and compute its exact score


@dataclass(frozen=True)
class Kind:
    """One kind of index.

    Attributes:
        factory: factory string of :func:`dtrak.index.faiss_index.build_index`.
        bytes_a_row: bytes in memory per row.
        slowness: search time divided by the time to read the searched bytes, measured on one thread.
        share: share of the rows that a search visits.
        expected: recall@10 on synthetic vectors; None if it depends on the data.
    """

    factory: str
    bytes_a_row: float
    slowness: float
    share: float = 1.0
    expected: float | None = None

    @property
    def exact(self) -> bool:
        """Whether its results equal a full scan's."""
        return self.factory == FLAT


def kinds(rows: int, dim: int) -> list[Kind]:
    """The kinds of index to choose from, preferred ones first.

    Args:
        rows: N, the number of training samples.
        dim: k, the projected dimension.
    """
    lists = max(16, 2 ** round(math.log2(4 * math.sqrt(rows))))
    found = [
        Kind(FLAT, 4 * dim, 1.1, expected=1.0),
        Kind("SQfp16", 2 * dim, 1.3, expected=1.0),
        Kind("SQ8", dim, 2.5, expected=1.0),
    ]
    for size, of_bytes, of_nibbles in ((128, 1.0, 0.99), (64, 0.98, 0.94)):
        if rows > dim >= size and fits(rows, dim):
            found += [
                Kind(f"White{size},SQ8", size, 2.5, expected=of_bytes),
                Kind(f"White{size},PQ{size}x4fs", size / 2, 1.3, expected=of_nibbles),
            ]
    if rows >= 40 * lists:
        found += [
            Kind(f"IVF{lists},SQ8", dim + 8, 2.5, 1 / PROBES),
            Kind(f"IVF{lists},PQ{dim // 4}x4fs" if dim % 4 == 0 else f"IVF{lists},SQ4", dim / 8 + 8, 1.3, 1 / PROBES),
        ]
    return found


@dataclass(frozen=True)
class Choice:
    """One kind of index with its estimated cost and recall.

    Attributes:
        bytes: size of the index in memory.
        seconds: expected time of a search.
        recall: recall@10; None if not known before it is tried.
        measured: number of the study's rows on which recall was measured; 0 if on synthetic vectors.
    """

    kind: Kind
    bytes: float
    seconds: float
    recall: float | None
    measured: int

    @property
    def quick(self) -> bool:
        """Whether a search is fast enough for interactive use."""
        return self.seconds <= PATIENCE

    def why_not(self, ram: float, recall: float) -> str:
        """Why it does not meet the limits, in a few words; empty if it does.

        Args:
            ram: memory limit in bytes.
            recall: required recall@10.
        """
        if self.bytes > ram:
            return f"larger than {size_in_words(ram)}"
        if self.recall is None:
            return "recall unknown until features are built"
        if self.recall < recall:
            return f"recall below {recall:g}"
        return ""


def judged(rows: int, dim: int, stores: Sequence[FeatureStore] = ()) -> list[Choice]:
    """Every kind with its size, expected search time on this machine, and lowest recall over the stores.

    Args:
        rows: N, the number of training samples.
        dim: k, the projected dimension.
        stores: complete features of the study, to measure recall on.
    """
    speed = max(_bytes_a_second() for _ in range(5))
    count = min(rows, SAMPLE, SAMPLE_NUMBERS // dim)
    of_stores = [_recalls(s, kinds(rows, dim), count) for s in stores if rows > 2 * QUERIES and fits(count, dim)]
    measured = {f: min(found[f] for found in of_stores) for f in (of_stores[0] if of_stores else {})}
    choices = []
    for kind in kinds(rows, dim):
        size = rows * kind.bytes_a_row
        seconds = size * kind.share * kind.slowness / speed + (
            0 if kind.exact else max(CANDIDATES, rows // SHARE) * LOOKUP
        )
        known = measured.get(kind.factory, kind.expected)
        choices.append(Choice(kind, size, seconds, known, count if kind.factory in measured else 0))
    return choices


def chosen(choices: Sequence[Choice], ram: float, recall: float) -> Choice:
    """The first kind that meets the limits and is fast; if none is fast, the first that meets the limits.

    Raises:
        DtrakError: no kind meets the limits.
    """
    fitting = [c for c in choices if not c.why_not(ram, recall)]
    quick = [c for c in fitting if c.quick]
    if fitting:
        return (quick or fitting)[0]
    raise DtrakError(
        f"No index within {size_in_words(ram)} is known to reach a recall@10 of {percent(recall)}.",
        hint="Increase --ram, lower --recall, or build features with a smaller projection_dim.",
    )


@dataclass(frozen=True)
class IndexPlan:
    """The index chosen for one size of features, and the alternatives."""

    rows: int
    dim: int
    ram: float
    recall: float
    choices: tuple[Choice, ...]

    @property
    def chosen(self) -> Choice:
        """See :func:`chosen`."""
        return chosen(self.choices, self.ram, self.recall)

    def as_dict(self) -> dict[str, Any]:
        """As JSON-serialisable data."""
        choices = [
            {
                "index_factory": c.kind.factory,
                "bytes": c.bytes,
                "seconds": c.seconds,
                "recall": c.recall,
                "measured": c.measured,
                "against": c.why_not(self.ram, self.recall),
            }
            for c in self.choices
        ]
        return {
            "rows": self.rows,
            "dim": self.dim,
            "chosen": self.chosen.kind.factory,
            "kernel": solver_choice(self.rows, self.dim),
            "choices": choices,
        }

    @property
    def text(self) -> str:
        """The alternatives as a table, and the choice, for a terminal."""
        best = self.chosen
        lines = [
            f"  Index of {self.rows:,} rows with {self.dim:,} columns, at most {size_in_words(self.ram)}, recall@10 "
            f"at least {self.recall:g}:",
            f"    {'index_factory':22}{'memory':>11}{'search':>10}{'recall':>8}",
        ]
        for c in self.choices:
            found = "?" if c.recall is None else f"{c.recall:.2f}{'' if c.measured or c.kind.exact else '*'}"
            against = "<- chosen" if c == best else c.why_not(self.ram, self.recall) or ("" if c.quick else "slow")
            time = f"{1e3 * c.seconds:.3g} ms"
            lines.append(f"    {c.kind.factory:22}{size_in_words(c.bytes):>11}{time:>10}{found:>8}  {against}")
        where = (
            f"measured on {best.measured:,} rows of this study"
            if best.measured
            else "* measured on synthetic vectors: docs/scale.md"
        )
        why = "exact, and fits in memory" if best.kind.exact else f"the first that meets both limits; {where}"
        return "\n".join(
            [
                *lines,
                f"    Set 'index_factory: {best.kind.factory}': {why}.",
                f"    {solver_choice(self.rows, self.dim)}",
            ]
        )


def plan_indexes(folder: StudyFolder, rows: int, ram: float, recall: float) -> list[IndexPlan]:
    """Choose an index for each projected dimension of the study's index features.

    Args:
        rows: N, the number of training samples.
        ram: memory limit in bytes.
        recall: required recall@10.

    Raises:
        DtrakError: no kind of index meets the limits.
    """
    plans = []
    for dim in dict.fromkeys(config.projection_dim for config in folder.study.features):
        choices = tuple(judged(rows, dim, _built(folder, rows, dim)))
        chosen(choices, ram, recall)  # raises if no kind meets the limits
        plans.append(IndexPlan(rows, dim, ram, recall, choices))
    return plans


def _built(folder: StudyFolder, rows: int, dim: int) -> list[FeatureStore]:
    """The study's complete index stores of that size."""
    side, found = TrainingSide(folder), []
    for config in folder.study.features:
        with contextlib.suppress(DtrakError):
            store = side.store(config)
            if (store.rows, store.dim) == (rows, dim):
                found.append(store)
    return found


def recall_of(
    rows: Float[np.ndarray, "n k"],
    queries: Float[np.ndarray, "q k"],
    factory: str,
    kernel: Kernel,
    damping: float = TYPICAL,
    candidates: int | None = None,
) -> float:
    """Mean recall of an index against exact search, for queries under the kernel.

    Recall is of the exact top n, with n a tenth of the candidates and at most ten.

    Args:
        damping: relative λ of the queries.
        candidates: number of candidates to re-rank; default the index's own.
    """
    top = max(1, min(TOP, (candidates or CANDIDATES) // 10))
    index = IndexedRows.build(rows, factory, kernel)
    found = []
    for query in queries:
        q = kernel.precondition(rows, query, damping)
        best = np.argsort(-(rows @ q.astype(np.float32)), kind="stable")[:top]
        named = index.search(q[None], top, candidates)[0][0]
        found.append(len({*best.tolist()} & {*named.tolist()}) / top)
    return float(np.mean(found))


def _recalls(store: FeatureStore, of: Sequence[Kind], count: int) -> dict[str, float]:
    """Recall of each kind on ``count`` rows, with the number of candidates scaled down in proportion."""
    rows = store.sample(count)
    candidates = max(10, round(max(CANDIDATES, store.rows // SHARE) * len(rows) / store.rows))
    damping = DAMPINGS.get(store.identity["output"], TYPICAL)
    order = keyed_generator("recall", 0, store.fingerprint).permutation(len(rows))
    queries, rows = rows[order[:QUERIES]], rows[order[QUERIES:]]
    kernel = Kernel.decompose(rows)
    found = {}
    for kind in of:
        if kind.exact:
            found[kind.factory] = 1.0
        elif not split_white(kind.factory)[0] or not kernel.dual:
            found[kind.factory] = recall_of(rows, queries, kind.factory, kernel, damping, candidates)
    return found


def _bytes_a_second() -> float:
    """Memory read bandwidth of one thread on this machine."""
    numbers = np.ones(2**24, dtype=np.uint64)
    numbers.sum()
    start = time.perf_counter()
    numbers.sum()
    return numbers.nbytes / (time.perf_counter() - start)
