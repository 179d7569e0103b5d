"""``python -m benchmarks.size``: search, kernel and disk space of indexes of growing size, on synthetic features.

Synthetic features are independent normal numbers scaled to a spectrum, and each row by a random factor. Both are fitted
to the demo's features (D-TRAK: eigenvalues ∝ i^−1.5, norms spread by 10 %; TRAK: i^−0.96 and 30 %; eigenvalues 2 to 200
of 285). Queries are further draws, preconditioned at the method's default λ.
"""

import argparse
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.report import Row, median_seconds, publish, screenshot
from dtrak.analysis.comparison import ranking
from dtrak.build.features import shard_size
from dtrak.index.faiss_index import AttributionIndex, QueryFeature, build_index
from dtrak.index.store import FeatureStore
from dtrak.linalg.kernel import multiply
from dtrak.methods.readout import Readout
from dtrak.utils.text import in_words, size_in_words

TOP, QUERIES = 10, 20
COMMAND = "python -m benchmarks.size"


@dataclass(frozen=True)
class Like:
    """The statistics of a method's features that synthetic ones reproduce: spectrum slope, norm spread, default λ."""

    name: str
    slope: float
    spread: float
    damping: float


DTRAK, TRAK = Like("D-TRAK", 1.5, 0.1, 0.316), Like("TRAK", 0.96, 0.3, 3.16)


def draw(like: Like, rows: int, dim: int, seed: int) -> np.ndarray:
    """Rows with the method's spectrum, float32; the mean eigenvalue is 1."""
    random = np.random.default_rng(seed)
    values = np.arange(1, dim + 1) ** -like.slope
    scale = np.sqrt(values / values.mean()).astype(np.float32)
    factors = np.exp(like.spread * random.standard_normal(rows, dtype=np.float32))
    found = random.standard_normal((rows, dim), dtype=np.float32)
    found *= scale
    found *= factors[:, None]
    return found


def fill(folder: Path, like: Like, rows: int, dim: int, dtype: str) -> FeatureStore:
    """A store of synthetic features."""
    projection = {"kind": "sparse", "dim": dim}
    identity = {"output": "loss", "projection": projection, "dtype": dtype, "like": like.name, "rows": rows}
    store = FeatureStore.create(folder, identity, rows, shard_size(rows))
    for shard in store.missing():
        store.write(shard, draw(like, len(store.shard_rows(shard)), dim, shard))
    return store


@dataclass(frozen=True)
class Measured:
    """The measurements of one index."""

    what: str
    rows: int
    building: float
    opening: float
    ahead: float
    back: float
    recall: float
    held: int
    disk: int
    reading: float | None = None

    @property
    def row(self) -> Row:
        """The row of the table."""
        read = f"; {self.ahead / self.reading:.2f} × one read of those bytes (goal 1.5)" if self.reading else ""
        return (
            self.what,
            f"{1e3 * self.ahead:.1f} ms a search, opponents {1e3 * self.back:.1f} ms",
            f"recall@10 {self.recall:.3f}{read}; {size_in_words(self.held)} in memory, {size_in_words(self.disk)} on "
            f"disk; built in {in_words(self.building)}, opened in {self.opening:.2f} s",
        )


def measure(scratch: Path, like: Like, rows: int, dim: int, factory: str, dtype: str = "float16") -> Measured:
    """Build, open, search and check one index; its feature store is reused by the next."""
    store = fill(scratch / "features", like, rows, dim, dtype)
    start = time.perf_counter()
    folder = build_index(store, scratch / "index", factory)
    building = time.perf_counter() - start
    start = time.perf_counter()
    index = AttributionIndex(folder, store)
    opening = time.perf_counter() - start
    found, ahead, back = [], [], []
    for vector in draw(like, QUERIES, dim, 10**9):
        query = QueryFeature(vector, store.identity)
        q = index.searchable(query, like.damping)
        exact = multiply(index.features, q)
        best = np.argpartition(-exact, TOP)[:TOP]
        index.search(q, TOP)
        for sign, seconds in ((1, ahead), (-1, back)):
            start = time.perf_counter()
            ids, _ = index.search(sign * q, TOP)
            seconds.append(time.perf_counter() - start)
            if sign == 1:
                found.append(len({*ids.tolist()} & {*best.tolist()}) / TOP)
    reading = None
    if factory in ("Flat", "SQfp16"):
        numbers = np.array(np.load(folder / "features.npy", mmap_mode="r")).view(np.uint64)
        reading = median_seconds(lambda: numbers.sum(), 5)
    return Measured(
        f"{factory}, like {like.name}, N = {rows:,}, k = {dim:,}",
        rows,
        building,
        opening,
        float(np.median(ahead)),
        float(np.median(back)),
        float(np.mean(found)),
        (folder / "vectors.faiss").stat().st_size,
        sum(path.stat().st_size for path in [*folder.glob("*"), *store.folder.glob("*")]),
        reading,
    )


def growth(scratch: Path) -> list[Row]:
    """The same index from ten thousand to ten million rows; also plotted to docs/growth.png."""
    found = []
    for rows in (10**4, 10**5, 10**6, 10**7):
        found.append(measure(scratch / str(rows), DTRAK, rows, 256, "White128,PQ128x4fs"))
        shutil.rmtree(scratch / str(rows))
    draw_growth(found)
    return [one.row for one in found]


def draw_growth(found: list[Measured]) -> None:
    """Plot build time, disk space and search time over N, each with a linear reference."""
    from plotly.subplots import make_subplots

    panels = {
        "build, s": [one.building for one in found],
        "on disk, GB": [one.disk / 1e9 for one in found],
        "a search, ms": [1e3 * one.ahead for one in found],
    }
    figure = make_subplots(1, 3, subplot_titles=list(panels))
    sizes = [one.rows for one in found]
    for column, values in enumerate(panels.values(), 1):
        linear = [values[-1] * size / sizes[-1] for size in sizes]
        figure.add_scatter(x=sizes, y=linear, mode="lines", line={"dash": "dot", "color": "grey"}, row=1, col=column)
        figure.add_scatter(x=sizes, y=values, mode="lines+markers", line={"color": "#1f77b4"}, row=1, col=column)
    figure.update_xaxes(type="log", title="rows")
    figure.update_yaxes(type="log")
    figure.update_layout(width=1000, height=320, showlegend=False, template="plotly_white", margin={"t": 40, "b": 50})
    screenshot(figure, "growth.png")


def lists(scratch: Path) -> list[Row]:
    """From another λ to both lists and the histogram of an Attribution page, against scoring all rows."""
    found = []
    for rows in (10**6, 10**7):
        found.append(listing(scratch / str(rows), rows, 256))
        shutil.rmtree(scratch / str(rows))
    return found


def listing(scratch: Path, rows: int, dim: int) -> Row:
    """One size of :func:`lists`."""
    store = fill(scratch / "features", DTRAK, rows, dim, "float16")
    folder = build_index(store, scratch / "index", "White128,PQ128x4fs")
    before = own_memory()
    index = AttributionIndex(folder, store)
    query = QueryFeature(draw(DTRAK, 1, dim, 10**9)[0], store.identity)
    dampings = iter(np.geomspace(1e-3, 1e3, 1000).tolist())

    def listed() -> None:
        q = index.searchable(query, next(dampings))
        index.both_ends(q, TOP)
        index.sampled(q)

    searching = median_seconds(listed)
    held = own_memory() - before
    scoring = median_seconds(lambda: ranking(index.scores(query, next(dampings))), 3)
    return (
        f"another λ to both lists and the histogram, N = {rows:,}, k = {dim:,}",
        f"{1e3 * searching:.0f} ms",
        f"goal 300 ms; {1e3 * scoring:.0f} ms to score and sort all rows; {size_in_words(held)} of its own memory "
        "(goal 500 MB)",
    )


def own_memory() -> int:
    """The process's memory without mapped files, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


def toggle_rows(scratch: Path, rows: int = 50_000, dim: int = 4096) -> list[Row]:
    """From a changed setting to a new ranking at N = 50,000."""
    store = fill(scratch / "features", DTRAK, rows, dim, "float32")
    start = time.perf_counter()
    folder = build_index(store, scratch / "index")
    building = time.perf_counter() - start
    start = time.perf_counter()
    index = AttributionIndex(folder, store)
    opening = time.perf_counter() - start
    readout = Readout(index.features, kernel=index.kernel)
    query = draw(DTRAK, 1, dim, 10**9)[0]
    dampings = iter(np.geomspace(1e-3, 1e3, 1000).tolist())
    damping = median_seconds(lambda: ranking(readout.scores(query, next(dampings))), 5)
    method = median_seconds(lambda: ranking(readout.scores(query, None)), 5)
    ahead = index.searchable(QueryFeature(query, store.identity), 0.316)
    search = median_seconds(lambda: (index.search(ahead, TOP), index.search(-ahead, TOP)), 5)
    what = f"N = {rows:,}, k = {dim:,}"
    return [
        (f"another λ to a new ranking, {what}", f"{1e3 * damping:.0f} ms", "goal 500 ms"),
        (f"another method (gradient dot) to a new ranking, {what}", f"{1e3 * method:.0f} ms", "goal 500 ms"),
        (f"both ends of the flat index, {what}", f"{1e3 * search:.0f} ms", ""),
        (f"its index with an eigendecomposition of {dim:,} a side", in_words(building), f"opened in {opening:.2f} s"),
    ]


def large(scratch: Path) -> list[Row]:
    """A flat index of 4 GB."""
    return [measure(scratch, DTRAK, 250_000, 4096, "Flat", "float32").row]


def exact(scratch: Path) -> list[Row]:
    """Exact search in float16 compared with reading the same bytes."""
    return [measure(scratch / str(n), DTRAK, n, 1024, "SQfp16").row for n in (10**5, 10**6)]


def million(scratch: Path) -> list[Row]:
    """All kinds of index over the same million rows."""
    factories = ("SQ8", "White64,SQ8", "White64,PQ64x4fs", "White128,PQ128x4fs", "PQ64x4fs", "IVF4096,SQ8")
    found = [measure(scratch, DTRAK, 10**6, 256, factory) for factory in factories]
    return [one.row for one in [*found, measure(scratch, TRAK, 10**6, 256, "White64,PQ64x4fs")]]


PARTS = {"toggle": toggle_rows, "lists": lists, "open": large, "exact": exact, "million": million, "growth": growth}


def main() -> None:
    """Run some parts, or all; each writes its own table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="|".join(PARTS), help="default: all")
    for part in parser.parse_args().parts or PARTS:
        scratch = Path(tempfile.mkdtemp(dir=Path.cwd(), prefix=".bench-"))
        try:
            publish(f"{COMMAND} {part}", PARTS[part](scratch))
        finally:
            shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
