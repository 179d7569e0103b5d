"""Projections preserve inner products: unbiased, with the variance stated in the docstring."""

import numpy as np
import pytest
import torch

from dtrak.gradients.narrow import narrowed
from dtrak.gradients.projection import DenseProjector, SparseProjector, _add, make_projector
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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_sparse_equals_its_matrix(pair, dtype):
    pair = pair.to(dtype)
    found = SparseProjector(D, K, 1)(pair)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    np.testing.assert_allclose(found, pair.double().numpy() @ oracle.sparse_matrix(D, K, 1).T, atol=1e-5)


def test_other_devices_add_to_the_same_bits(pair):
    projector = SparseProjector(D, K, 1)
    ring = torch.zeros(2, 2 * K, dtype=torch.float64)
    for start, stop in ((0, 70), (70, 300)):
        _add(ring, pair[:, start:stop], projector._signs, projector._shifts, start)
    assert (ring[:, :K] + ring[:, K:] == projector(pair)).all()


@pytest.mark.parametrize("kind", ["sparse", "normal"])
def test_pieces_are_the_whole(pair, kind):
    project = make_projector(kind, D, K, 1)
    total = project.begin(2, pair)
    for piece, start in ((pair[:, 207:], 207), (pair[:, 7:207].reshape(2, 10, 20), 7)):
        project.add(total, piece, start)
    for row in range(2):
        project.add(total[row : row + 1], pair[row : row + 1, :7], 0)
    torch.testing.assert_close(project.result(total), project(pair))
    for start in (1, -1):
        with pytest.raises(ValueError, match="out of range for input_dim 300"):
            project.add(total, pair, start)
    with pytest.raises(ValueError, match="2 vectors to 1"):
        project.add(total[:1], pair, 0)


@pytest.mark.parametrize("kind", ["sparse", "normal"])
def test_a_piece_is_taken_by_its_indices_however_it_lies_in_memory(pair, kind):
    project = make_projector(kind, D, K, 1)
    kernel = pair[:, :270].reshape(2, 5, 6, 3, 3)
    channels_last = kernel.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    elsewise = kernel.permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0)
    half = torch.cat([channels_last, channels_last], 1).split(5, 1)[1]
    found = []
    for piece in (kernel.contiguous(), channels_last, half, elsewise):
        total = project.begin(2, pair)
        project.add(total, piece, 30)
        found.append(project.result(total))
    assert (found[0] != 0).any()
    assert all((result == found[0]).all() for result in found[1:])


def test_dense_block_size_is_part_of_the_matrix_only_through_its_rows(pair):
    projector = DenseProjector(D, K, 1)
    matrix = np.concatenate(list(projector.matrix_blocks())) / K**0.5
    np.testing.assert_allclose(projector(pair).numpy(), pair.numpy() @ matrix, rtol=1e-6)


def test_seeds_differ_and_repeat(pair):
    assert (SparseProjector(D, K, 1)(pair) == SparseProjector(D, K, 1)(pair)).all()
    assert (SparseProjector(D, K, 1)(pair) != SparseProjector(D, K, 2)(pair)).any()


@pytest.mark.parametrize("kind", ["sparse", "normal"])
def test_a_narrowed_projection_keeps_inner_products_of_single_coordinates(kind):
    """A truncated count sketch would lose most coordinates altogether."""
    vectors = torch.eye(200)
    rows = make_projector(kind, 200, 64, 0)(vectors).numpy()
    narrow = narrowed(rows, 16, kind)
    assert narrow.shape == (200, 16)
    norms = (narrow**2).sum(1)
    assert norms.mean() == pytest.approx(1, abs=0.1)
    if kind == "sparse":
        np.testing.assert_allclose(norms, 1)  # every coordinate stays in one bucket
    assert narrowed(rows, 64, kind) is rows
    assert narrowed(rows, 10, kind).shape == (200, 10)
