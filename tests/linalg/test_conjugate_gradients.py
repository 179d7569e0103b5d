"""Multi-shift conjugate gradients equal the eigendecomposition, and serve an index that is too large for one."""

import numpy as np
import pytest

from dtrak.build.features import build_features, build_indexes
from dtrak.build.verify import verify_study
from dtrak.execution.engines import Local
from dtrak.linalg.conjugate_gradients import KrylovKernel, fits, memory_allowed, solve, solver_choice
from dtrak.linalg.kernel import Kernel
from dtrak.methods.attributor import Attributor
from dtrak.methods.readout import Readout
from dtrak.methods.settings import Setting
from dtrak.utils.errors import DtrakError

DAMPINGS = (1e-3, 0.1, 1.0, 100.0)


def features(rows, columns, seed=0):
    """Rows with a spectrum like that of real features."""
    random = np.random.default_rng(seed)
    return (random.standard_normal((rows, columns)) * np.arange(1, columns + 1) ** -0.7).astype(np.float32)


@pytest.mark.parametrize("shape", [(120, 60), (60, 120), (50, 50)])
def test_all_shifts_equal_a_direct_solve(shape):
    phi = features(*shape)
    queries = np.random.default_rng(1).standard_normal((3, shape[1]))
    unit = Kernel.decompose(phi).mean_eigenvalue
    found = solve(phi, queries, [d * unit for d in DAMPINGS])
    gram = phi.T.astype(float) @ phi
    for damping, vectors in zip(DAMPINGS, found.vectors, strict=True):
        matrix = gram + damping * unit * np.eye(shape[1])
        direct = np.linalg.solve(matrix, queries.T).T
        assert np.abs(vectors - direct).max() <= 1e-6 * np.abs(direct).max()
        true = np.linalg.norm(vectors @ matrix - queries, axis=1) / np.linalg.norm(queries, axis=1)
        assert (true < 1e-7).all()  # the recurrences' residuals equal the true ones
    assert found.residuals.max() <= 1e-8


def test_one_pass_serves_every_shift():
    phi, query = features(80, 40), np.ones((1, 40))
    unit = KrylovKernel(phi).mean_eigenvalue
    alone = solve(phi, query, [0.01 * unit]).passes
    assert solve(phi, query, [0.01 * unit, unit, 100 * unit]).passes == alone
    assert solve(phi, query, [unit]).passes < alone
    assert not solve(phi, np.zeros((1, 40)), [1.0]).vectors.any()
    with pytest.raises(DtrakError, match="larger damping"):
        solve(phi, query, [1e-9 * unit], most=5)


@pytest.mark.parametrize("shape", [(150, 70), (70, 150)])
def test_the_same_questions_have_the_same_answers(shape):
    phi = features(*shape)
    dense, krylov = Kernel.decompose(phi), KrylovKernel(phi)
    query = np.random.default_rng(2).standard_normal(shape[1]).astype(np.float32)
    assert krylov.mean_eigenvalue == pytest.approx(dense.mean_eigenvalue, rel=1e-9)
    for damping in DAMPINGS:
        expected = dense.scores(phi, query, damping)
        np.testing.assert_allclose(krylov.scores(phi, query, damping), expected, atol=1e-6 * np.abs(expected).max())
        np.testing.assert_allclose(
            phi @ krylov.precondition(phi, query, damping), expected, atol=1e-5 * np.abs(expected).max()
        )
    for name in ("influence_norms", "leverages"):
        exact, estimated = getattr(dense, name)(phi, 0.1), getattr(krylov, name)(phi, 0.1)
        assert np.median(np.abs(estimated / exact - 1)) < 0.2
        assert abs(np.mean(estimated / exact) - 1) < 0.1
    with pytest.raises(DtrakError, match="auto"):
        _ = krylov.auto_damping


def test_the_memory_allowed_chooses_the_road(monkeypatch):
    assert fits(50_000, 4096)
    assert not fits(50_000, 32_768)
    assert "eigendecomposition" in solver_choice(5000, 32_768)
    assert "conjugate gradients" in solver_choice(50_000, 32_768)
    monkeypatch.setenv("DTRAK_MEMORY", "500 MB")
    assert memory_allowed() == 5e8
    assert not fits(5000, 32_768)
    monkeypatch.setenv("DTRAK_MEMORY", "much")
    with pytest.raises(DtrakError, match="DTRAK_MEMORY"):
        memory_allowed()


def test_readouts_agree_by_either_road(monkeypatch):
    phi, queries = features(90, 60), np.random.default_rng(3).standard_normal((4, 60)).astype(np.float32)
    dense = Readout(phi)
    expected = dense.scores(queries, 0.1), dense.each(queries, [0.01, 1.0]), dense.scores(queries[0], 0.1)
    monkeypatch.setenv("DTRAK_MEMORY", "0.01MB")
    krylov = Readout(phi)
    assert isinstance(krylov.kernel, KrylovKernel)
    wide = phi.T.copy()  # fewer rows than columns, decomposed under a higher memory limit
    known = Readout(wide, kernel=Kernel.decompose(wide))
    for some in (np.zeros((0, 90)), np.random.default_rng(4).standard_normal((2, 90))):
        np.testing.assert_allclose(known.inner(some, 0.1), Readout(wide).inner(some, 0.1), atol=1e-6)
    found = krylov.scores(queries, 0.1), krylov.each(queries, [0.01, 1.0]), krylov.scores(queries[0], 0.1)
    np.testing.assert_allclose(krylov.inner_of([3, 1], queries, 0.1), expected[0][:, [3, 1]], atol=1e-6)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_an_index_without_a_decomposition_ranks_alike(fresh, tiny, attributor, query, monkeypatch, built, tmp_path):
    setting = Setting("dtrak")
    expected = attributor.attribute(query, attributor.features(query, [setting]), setting)
    monkeypatch.setenv("DTRAK_WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.setenv("DTRAK_MEMORY", "0.001MB")
    build_indexes(fresh, build_features(fresh, Local(1)))
    assert not list(fresh.index.glob("*/eigenvectors.npy"))
    assert verify_study(fresh) == []
    other = Attributor(fresh)
    found = other.attribute(query, other.features(query, [setting]), setting)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6 * np.abs(expected.scores).max())
    assert [s.record.id for s in found.proponents] == [s.record.id for s in expected.proponents]
    assert [s.record.id for s in found.opponents] == [s.record.id for s in expected.opponents]
