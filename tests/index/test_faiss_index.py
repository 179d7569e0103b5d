"""Kernel and index equal the k×k solve, on both sides of N = k, for every λ."""

import numpy as np
import pytest

from dtrak.index.faiss_index import AttributionIndex, QueryFeature, build_index
from dtrak.index.store import FeatureStore
from dtrak.linalg.kernel import Kernel
from dtrak.utils.errors import DtrakError
from tests import oracle

DAMPINGS = [1e-4, 0.1, 10, 1e4]
IDENTITY = {"output": "loss", "projection": {"kind": "sparse", "dim": 20}, "dtype": "float32"}


def features(n, k, seed=0):
    return np.random.default_rng(seed).standard_normal((n, k)).astype(np.float32)


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (12, 12)])
@pytest.mark.parametrize("damping", DAMPINGS)
def test_scores_equal_the_solve(shape, damping):
    train, query = features(*shape), features(1, shape[1], 1)[0]
    kernel = Kernel.decompose(train)
    expected = oracle.scores(train, query, damping)
    np.testing.assert_allclose(kernel.scores(train, query, damping), expected, rtol=1e-7, atol=1e-9)
    q = kernel.precondition(train, query, damping)
    np.testing.assert_allclose(train @ q, expected, rtol=1e-6, atol=1e-8)


def test_duplicate_rows_do_not_break_the_kernel():
    train = np.repeat(features(5, 40), 2, axis=0)
    query = features(1, 40, 1)[0]
    expected = oracle.scores(train, query, 0.01)
    q = Kernel.decompose(train).precondition(train, query, 0.01)
    np.testing.assert_allclose(train @ q, expected, rtol=1e-6, atol=1e-9)


def test_damping_must_be_positive():
    train = features(5, 8)
    with pytest.raises(ValueError, match="positive"):
        Kernel.decompose(train).scores(train, train[0], 0.0)


@pytest.fixture
def store(tmp_path):
    store = FeatureStore.create(tmp_path / "features", IDENTITY, 50, shard_size=16)
    data = features(50, 20)
    for shard in store.shards:
        rows = store.shard_rows(shard)
        store.write(shard, data[rows.start : rows.stop])
    return store


@pytest.mark.parametrize("damping", DAMPINGS)
def test_search_finds_proponents_and_opponents(store, tmp_path, damping):
    index = AttributionIndex(build_index(store, tmp_path / "index"), store)
    query = QueryFeature(features(1, 20, 1)[0], IDENTITY)
    expected = oracle.scores(store.read(), query.vector, damping)
    np.testing.assert_allclose(index.scores(query, damping), expected, rtol=1e-6, atol=1e-9)
    q = index.kernel.precondition(index.features, query.vector, damping)
    assert index.search(q, 7)[0].tolist() == np.argsort(-expected)[:7].tolist()
    assert index.search(-q, 7)[0].tolist() == np.argsort(expected)[:7].tolist()
    for (rows, scores), sign in zip(index.both_ends(q, 7), (1, -1), strict=True):
        found, products = index.search(sign * q, 7)
        assert rows.tolist() == found.tolist()
        assert scores.tolist() == (sign * products).tolist()
        np.testing.assert_allclose(scores, expected[rows], rtol=1e-6, atol=1e-9 * np.abs(expected).max())


def test_another_fingerprint_is_refused_by_field(store, tmp_path):
    index = AttributionIndex(build_index(store, tmp_path / "index"), store)
    with pytest.raises(DtrakError, match="output"):
        index.scores(QueryFeature(features(1, 20)[0], {**IDENTITY, "output": "mean"}), 0.1)


def test_factory_strings(store, tmp_path):
    index = AttributionIndex(build_index(store, tmp_path / "index", "HNSW8"), store)
    assert len(index.search(features(1, 20, 1)[0], 5)[0]) == 5
    with pytest.raises(DtrakError, match="Invalid index_factory"):
        build_index(store, tmp_path / "index", "Nonsense")


def test_store_knows_what_is_missing_and_what_is_damaged(store):
    assert store.complete
    assert store.verify() == []
    path = store.folder / "shard-00001.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert store.damaged() == [1]
    store.discard(1)
    assert store.missing() == [1]
    with pytest.raises(DtrakError, match="not built"):
        store.read()


def test_float16_overflow_is_refused(tmp_path):
    store = FeatureStore.create(tmp_path, {**IDENTITY, "dtype": "float16"}, 2)
    with pytest.raises(DtrakError, match="overflow"):
        store.write(0, np.full((2, 20), 1e6, np.float32))
