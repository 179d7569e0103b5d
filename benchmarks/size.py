"""``python -m benchmarks.size``: search, kernel and disk as the index grows, on vectors like real features.

Vectors are drawn: independent normal numbers scaled to a spectrum, then each row by a factor of its own. Both are those
of the demo's features (D-TRAK: eigenvalues fall as i^−1.5 and norms spread by 10 %; TRAK: i^−0.96 and 30 %), fitted to
eigenvalues 2 to 200 of 285. Queries are further draws, taken through the kernel at the method's default λ.
"""

import argparse
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.report import Row, median_seconds, publish
from dtrak.compare import ranking
from dtrak.index import AttributionIndex, QueryFeature, build_index
from dtrak.readout import Readout
from dtrak.store import FeatureStore
from dtrak.words import in_words, size_in_words
from index_builder.building import shard_size

TOP, QUERIES = 10, 20
COMMAND = "python -m benchmarks.size"


@dataclass(frozen=True)
class Like:
    """What drawn vectors have of a method's features."""

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
    """A store of drawn features."""
    identity = {"output": "loss", "projection": {"dim": dim}, "dtype": dtype, "like": like.name, "rows": rows}
    store = FeatureStore.create(folder, identity, rows, shard_size(rows))
    for shard in store.missing():
        store.write(shard, draw(like, len(store.shard_rows(shard)), dim, shard))
    return store


def search_rows(scratch: Path, like: Like, rows: int, dim: int, factory: str, dtype: str = "float16") -> list[Row]:
    """Build, open, search and check one index."""
    store = fill(scratch / "features", like, rows, dim, dtype)
    start = time.perf_counter()
    folder = build_index(store, scratch / "index", factory)
    building = time.perf_counter() - start
    start = time.perf_counter()
    index = AttributionIndex(folder, store)
    opening = time.perf_counter() - start
    queries = [QueryFeature(q, store.identity) for q in draw(like, QUERIES, dim, 10**9)]
    found, seconds = [], []
    for query in queries:
        q = index.searchable(query, like.damping)
        exact = index.scores(query, like.damping)
        best = np.argpartition(-exact, TOP)[:TOP]
        index.search(q, TOP)
        for sign in (1, -1):
            start = time.perf_counter()
            ids, _ = index.search(sign * q, TOP)
            seconds.append(time.perf_counter() - start)
            if sign == 1:
                found.append(len({*ids.tolist()} & {*best.tolist()}) / TOP)
    held = (folder / "vectors.faiss").stat().st_size
    disk = sum(path.stat().st_size for path in [*folder.glob("*"), *store.folder.glob("*")])
    ahead, back = np.median(seconds[::2]), np.median(seconds[1::2])
    read = ""
    if factory in ("Flat", "SQfp16"):
        numbers = np.load(folder / "features.npy", mmap_mode="r")
        numbers = np.array(numbers).view(np.uint64)
        pass_over = median_seconds(lambda: numbers.sum(), 5)
        read = f"; {ahead / pass_over:.2f} × one read of those bytes (goal 1.5)"
    what = f"{factory}, like {like.name}, N = {rows:,}, k = {dim:,}"
    return [
        (
            what,
            f"{1e3 * ahead:.1f} ms a search, opponents {1e3 * back:.1f} ms",
            f"recall@10 {np.mean(found):.3f}{read}; {size_in_words(held)} in memory, {size_in_words(disk)} on disk; "
            f"built in {in_words(building)}, opened in {opening:.2f} s",
        )
    ]


def toggle_rows(scratch: Path, rows: int = 50_000, dim: int = 4096) -> list[Row]:
    """From a toggle to a new ranking at N = 50,000."""
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


PARTS = {
    "toggle": lambda s: toggle_rows(s),
    "exact": lambda s: [row for n in (10**5, 10**6) for row in search_rows(s / str(n), DTRAK, n, 1024, "SQfp16")],
    "million": lambda s: [
        row
        for like in (DTRAK, TRAK)
        for factory in ("SQ8", "White64,SQ8", "White64,PQ64x4fs", "White128,PQ128x4fs", "PQ64x4fs", "IVF4096,SQ8")
        for row in search_rows(s / like.name, like, 10**6, 256, factory)
    ],
    "growth": lambda s: [
        row for n in (10**4, 10**5, 10**6) for row in search_rows(s / str(n), DTRAK, n, 256, "White64,PQ64x4fs")
    ],
    "ten-million": lambda s: search_rows(s, DTRAK, 10**7, 256, "White64,PQ64x4fs"),
}


def main() -> None:
    """Measure some parts, or all; each has a table of its own."""
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
