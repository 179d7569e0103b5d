"""Projections keep inner products: unbiased, with the variance the docstring states."""

import numpy as np
import pytest
import torch

from dtrak.projection import DenseProjector, SparseProjector, make_projector
from tests import oracle

D, K = 300, 32


@pytest.fixture
def pair():
    random = np.random.default_rng(0)
    x, y = random.standard_normal((2, D))
    return torch.from_numpy(np.stack([x, 0.5 * x + y]))


@pytest.mark.parametrize("kind", ["sparse", "normal", "rademacher"])
def test_inner_products_are_unbiased_with_bounded_variance(pair, kind):
    exact = float(pair[0] @ pair[1])
    bound = float(pair[0] @ pair[0] * (pair[1] @ pair[1]) + exact**2) / K
    found = []
    for seed in range(600):
        projected = make_projector(kind, D, K, seed)(pair)
        found.append(float(projected[0] @ projected[1]))
    assert abs(np.mean(found) - exact) <= 4 * np.sqrt(bound / len(found))
    assert 0.6 * bound <= np.var(found) <= 1.3 * bound


def test_sparse_matrix_has_one_sign_per_column():
    matrix = oracle.sparse_matrix(SparseProjector(D, K, 1))
    assert (np.abs(matrix).sum(0) == 1).all()
    assert set(np.unique(matrix)) == {-1.0, 0.0, 1.0}


def test_sparse_equals_its_matrix(pair):
    projector = SparseProjector(D, K, 1)
    matrix = oracle.sparse_matrix(projector)
    np.testing.assert_allclose(projector(pair).numpy(), pair.numpy() @ matrix.T, atol=1e-12)


@pytest.mark.parametrize("kind", ["sparse", "normal"])
def test_pieces_are_the_whole(pair, kind, monkeypatch):
    monkeypatch.setattr("dtrak.projection.CHUNK", 50)  # stretches end inside blocks and pieces
    project = make_projector(kind, D, K, 1)
    pieces = [pair[:, :7], pair[:, 7:207].reshape(2, 10, 20), pair[:, 207:]]
    torch.testing.assert_close(project(pieces), project(pair))
    torch.testing.assert_close(project(pieces[1:2], [7]) + project(pieces[::2], [0, 207]), project(pair))
    torch.testing.assert_close(project([piece[:1] for piece in pieces]), project(pair)[:1])
    with pytest.raises(ValueError, match="293 numbers"):
        project(pieces[1:])


def test_dense_block_size_is_part_of_the_matrix_only_through_its_rows(pair):
    projector = DenseProjector(D, K, 1)
    matrix = np.concatenate(list(projector.matrix_blocks())) / K**0.5
    np.testing.assert_allclose(projector(pair).numpy(), pair.numpy() @ matrix, rtol=1e-6)


def test_seeds_differ_and_repeat(pair):
    assert (SparseProjector(D, K, 1)(pair) == SparseProjector(D, K, 1)(pair)).all()
    assert (SparseProjector(D, K, 1)(pair) != SparseProjector(D, K, 2)(pair)).any()
