"""EK-FAC against the exact Gauss–Newton matrix of tiny networks."""

import numpy as np
import pytest
import torch
from torch import nn

from dtrak.linalg.kfac import Kfac, fit, tuned_layers
from tests.oracle import gauss_newton


def every_output(network, x):
    """Cotangents that enumerate the outputs instead of drawing from them: F is then exact in expectation."""
    size = network(x)[0].numel()
    units = torch.eye(size, dtype=x.dtype).view(size, 1, *network(x).shape[1:])
    return units.expand(size, len(x), *network(x).shape[1:]) * 2**0.5  # averaged over D draws: 2/D each


def fitted(network, xs):
    return fit(network, lambda: [((lambda x=x: network(x)), every_output(network, x)) for x in xs])


def matrix(kfac, network):
    """F̂ as one matrix, by applying its inverse to unit vectors."""
    parameters = {name: p.detach() for name, p in network.named_parameters() if p.requires_grad}
    sizes = [p.numel() for p in parameters.values()]
    columns = []
    for unit in torch.eye(sum(sizes), dtype=torch.float64):
        parts = {n: u.view(p.shape) for (n, p), u in zip(parameters.items(), unit.split(sizes), strict=True)}
        columns.append(torch.cat([v.flatten() for v in kfac.precondition(parts, 1.0).values()]))
    return torch.linalg.inv(torch.stack(columns, 1)) - kfac.mean_eigenvalue * torch.eye(sum(sizes), dtype=torch.float64)


def kronecker(network, xs):
    """K-FAC without the correction, for a network that is one linear layer without bias."""
    a = sum(x.T @ x for x in xs) / sum(len(x) for x in xs)
    out = network(xs[0]).shape[1]
    return torch.kron(torch.eye(out, dtype=a.dtype) * 2 / out, a)


def test_a_single_data_point_and_output_is_exact():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 1, bias=True)).double()
    x = torch.randn(1, 4, dtype=torch.float64)
    torch.testing.assert_close(matrix(fitted(network, [x]), network), gauss_newton(network, [x]), atol=1e-8, rtol=0)


def test_one_linear_layer_is_exact_for_any_data():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 2, bias=False)).double()
    xs = [torch.randn(5, 3, dtype=torch.float64) for _ in range(3)]
    exact = gauss_newton(network, xs)
    torch.testing.assert_close(matrix(fitted(network, xs), network), exact, atol=1e-8, rtol=0)
    torch.testing.assert_close(kronecker(network, xs), exact, atol=1e-8, rtol=0)


@pytest.fixture
def convolutions():
    torch.manual_seed(1)
    network = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 2, 1, bias=False), nn.Flatten(), nn.Linear(18, 3)
    ).double()
    network[2].weight.requires_grad_(True)
    return network, [torch.randn(4, 2, 3, 3, dtype=torch.float64) for _ in range(2)]


def test_the_kronecker_form_errs_within_its_bound(convolutions):
    """|uᵀ(F̂+λ)⁻¹v − uᵀ(F+λ)⁻¹v| ≤ ‖u‖‖v‖ ‖F̂−F‖ / λ², and EK-FAC is nearer to F's blocks than no curvature at all."""
    network, xs = convolutions
    exact, found = gauss_newton(network, xs), matrix(fitted(network, xs), network)
    apart = torch.linalg.matrix_norm(found - exact, 2)
    sizes = [p.numel() for p in network.parameters()]
    layers = [sum(sizes[:2]), sizes[2], sum(sizes[3:])]
    start = 0
    for size in layers:
        block = slice(start, start + size)
        mean = exact[block, block].diagonal().mean()
        of_block = torch.linalg.matrix_norm(found[block, block] - exact[block, block])
        flat = torch.linalg.matrix_norm(mean * torch.eye(size) - exact[block, block])
        assert of_block < 0.9 * flat
        assert abs(found[block, block].trace() / exact[block, block].trace() - 1) < 1e-8  # EK-FAC keeps the trace
        start += size
    u, v = torch.randn(2, len(exact), dtype=torch.float64)
    for damping in (0.1, 1.0, 10.0):
        solved = [torch.linalg.solve(m + damping * torch.eye(len(exact)), v) for m in (found, exact)]
        assert abs(u @ (solved[0] - solved[1])) <= u.norm() * v.norm() * apart / damping**2


def test_drawn_cotangents_come_out_as_all_of_them_on_average(convolutions):
    network, xs = convolutions
    random = torch.Generator().manual_seed(0)
    size = network(xs[0])[0].numel()
    drawn = [
        torch.randn(4000, *network(x).shape, generator=random, dtype=torch.float64) * (2 / size) ** 0.5 for x in xs
    ]
    found = fit(network, lambda: [((lambda x=x: network(x)), v) for x, v in zip(xs, drawn, strict=True)])
    np.testing.assert_allclose(found.mean_eigenvalue, fitted(network, xs).mean_eigenvalue, rtol=0.05)


def test_factors_are_kept(convolutions, tmp_path):
    network, xs = convolutions
    found = fitted(network, xs)
    found.save(tmp_path / "factors.safetensors")
    gradients = {name: torch.randn_like(p) for name, p in network.named_parameters()}
    for name, value in Kfac.load(tmp_path / "factors.safetensors").precondition(gradients, 0.5).items():
        torch.testing.assert_close(value, found.precondition(gradients, 0.5)[name])


def test_what_has_no_factors_is_left_out():
    network = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 1)).double()
    network[0].weight.requires_grad_(False)
    assert list(tuned_layers(network)) == ["2"]
    found = fitted(network, [torch.randn(3, 2, dtype=torch.float64)])
    gradients = {n: torch.ones_like(p) for n, p in network.named_parameters() if p.requires_grad}
    solved = found.precondition(gradients, 1.0)
    assert not solved["1.weight"].any()
    assert solved["2.weight"].any()
    with pytest.raises(ValueError, match="positive"):
        found.precondition(gradients, 0)
