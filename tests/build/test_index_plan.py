"""Compressed indexes: their recall, and how one is chosen."""

import json

import numpy as np
import pytest

from dtrak.build.index_plan import Choice, chosen, judged, kinds, recall_of
from dtrak.index.faiss_index import AttributionIndex, QueryFeature, build_index
from dtrak.index.store import FeatureStore
from dtrak.index.whitening import Whitening
from dtrak.linalg.kernel import Kernel
from dtrak.utils.errors import DtrakError
from dtrak.utils.text import parse_size
from tests import oracle
from tests.helpers import call

ROWS, DIM = 6000, 80


def real_like(rows, seed, dim=DIM, slope=0.5):
    """Rows with a spectrum like that of the demo's features."""
    random = np.random.default_rng(seed)
    return (random.standard_normal((rows, dim)) * np.arange(1, dim + 1) ** -slope).astype(np.float32)


def identity(dtype):
    return {"output": "loss", "projection": {"kind": "sparse", "dim": DIM}, "dtype": dtype}


@pytest.fixture(scope="module", params=["float32", "float16"])
def store(request, tmp_path_factory):
    store = FeatureStore.create(tmp_path_factory.mktemp("features"), identity(request.param), ROWS, shard_size=500)
    rows = real_like(ROWS, 0)
    for shard in store.shards:
        of = store.shard_rows(shard)
        store.write(shard, rows[of.start : of.stop])
    return store


@pytest.mark.parametrize("factory", ["Flat", "SQfp16", "SQ8", "White64,SQ8", "White64,PQ64x4fs", "IVF64,SQ8"])
def test_both_ends_are_found_with_exact_products(store, tmp_path, factory, monkeypatch):
    monkeypatch.setattr("dtrak.index.indexed_rows.CANDIDATES", 300)
    index = AttributionIndex(build_index(store, tmp_path, factory), store)
    assert index.features.dtype == store.dtype
    np.testing.assert_array_equal(index.features, store.read().astype(store.dtype))
    found = []
    for query in real_like(10, 1):
        asked = QueryFeature(query, store.identity)
        expected = oracle.scores(store.read(), query, 0.316)
        np.testing.assert_allclose(index.scores(asked, 0.316), expected, atol=1e-7 * np.abs(expected).max())
        q = index.searchable(asked, 0.316)
        for sign in (1, -1):
            rows, products = index.search(sign * q, 10)
            np.testing.assert_allclose(products, sign * expected[rows], atol=2e-6 * np.abs(expected).max())
            assert (np.diff(products) <= 0).all()
            found.append(len({*rows} & {*np.argsort(-sign * expected)[:10]}) / 10)
    if not factory.startswith("IVF"):  # these rows have no clusters
        assert np.mean(found) >= 0.97


def test_whitened_coordinates_keep_inner_products():
    rows, query = real_like(300, 0), real_like(1, 1)[0].astype(np.float64)
    kernel = Kernel.decompose(rows)
    whole = Whitening.of(kernel, DIM)
    np.testing.assert_allclose(rows @ whole.rows @ whole.of_query(query), rows @ query, atol=1e-4)
    q = kernel.precondition(rows, query, 0.316)
    seen = rows @ whole.rows
    assert np.std(np.linalg.norm(seen, axis=0)) < 0.6 * np.std(np.linalg.norm(rows, axis=0))
    leading = Whitening.of(kernel, 64)
    correlation = np.corrcoef(rows @ leading.rows @ leading.of_query(q), rows @ q)[0, 1]
    assert correlation > 0.95
    for few, size in ((rows[:50], 20), (rows, DIM + 1)):
        with pytest.raises(DtrakError, match="White"):
            Whitening.of(Kernel.decompose(few), size)


def test_whitening_finds_what_a_quantiser_of_raw_rows_misses(monkeypatch):
    monkeypatch.setattr("dtrak.index.indexed_rows.CANDIDATES", 200)
    rows, queries = real_like(20_000, 0, 256, 0.75), real_like(20, 1, 256, 0.75)  # as of D-TRAK
    kernel = Kernel.decompose(rows)
    of_32_bytes = ("PQ64x4fs", "White64,PQ64x4fs")
    raw, white = (recall_of(rows, queries, factory, kernel) for factory in of_32_bytes)
    assert white > raw + 0.15


def test_a_damaged_or_older_index_is_told_and_made_again(store, tmp_path):
    folder = build_index(store, tmp_path, "SQ8")
    (folder / "features.npy").unlink()
    with pytest.raises(DtrakError, match="not built"):
        AttributionIndex(folder, store)
    build_index(store, tmp_path, "SQ8")
    (folder / "norms.npy").write_bytes(b"junk")
    with pytest.raises(DtrakError, match="damaged"):
        AttributionIndex(folder, store)
    with pytest.raises(DtrakError, match="White64"):
        build_index(store, tmp_path, "White640,SQ8")
    (folder / "manifest.json").unlink()
    build_index(store, tmp_path, "SQ8")
    with pytest.raises(DtrakError, match="Invalid index_factory"):
        build_index(store, tmp_path, "Nonsense")
    assert AttributionIndex(folder, store).search(real_like(1, 1)[0], 3)[0].size == 3  # the existing index is unchanged


def test_the_first_that_fits_finds_enough_and_is_quick_is_chosen():
    def choice(place, size, seconds, recall):
        return Choice(kinds(10**6, 256)[place], size, seconds, recall, 1000)

    flat, half, small = choice(0, 4e9, 0.3, 1.0), choice(1, 2e9, 0.05, 1.0), choice(4, 1e8, 0.01, 0.97)
    every = [flat, half, small]
    assert chosen(every, 8e9, 0.95) == half
    assert chosen(every, 1e9, 0.95) == small
    assert chosen([flat, small], 8e9, 0.99) == flat  # slow, but the only one with this recall
    assert flat.why_not(1e9, 0.9) == "larger than 1 GB"
    with pytest.raises(DtrakError, match="No index"):
        chosen(every, 1e7, 0.95)


def test_recall_is_measured_on_the_features_where_they_are_built(store):
    found = {choice.kind.factory: choice for choice in judged(ROWS, DIM, [store])}
    assert found["White64,SQ8"].measured
    assert found["White64,SQ8"].recall > 0.95
    assert found["Flat"].bytes == 4 * ROWS * DIM
    unknown = {choice.kind.factory: choice for choice in judged(10**6, 256)}
    assert unknown["IVF4096,SQ8"].recall is None
    assert "White64,SQ8" not in {kind.factory for kind in kinds(50_000, 32_768)}  # no decomposition fits


def test_plan_names_the_index(source, built, monkeypatch):
    monkeypatch.setenv("DTRAK_WORKSPACE", str(built))
    study = str(source / "tiny.yaml")
    assert "index_factory: Flat" in call("plan", study, "--ram", "8GB").output
    content = json.loads(call("plan", study, "--ram", "8GB", "--json").output)
    assert content[0]["indexes"][0]["chosen"] == "Flat"
    with pytest.raises(DtrakError, match="No index"):
        call("plan", study, "--ram", "1")
    with pytest.raises(DtrakError, match="--ram"):
        call("plan", study, "--ram", "much")
    assert parse_size("1.5TB", "x") == 1.5e12
