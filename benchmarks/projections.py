"""``python -m benchmarks.projections``: the sparse projection vs one read of the gradient and vs dattri."""

from collections.abc import Callable

import torch

from benchmarks.report import Row, medians, publish
from dtrak.execution.threads import task_threads
from dtrak.gradients.projection import SparseProjector

SIZES = ((2_320_896, 4096), (7_032_712, 4096), (38_307_203, 32_768))  # the demo's LoRA, its base, CIFAR-10's network


def projection_rows(tuned: int, dim: int) -> list[Row]:
    """The sparse projection of one gradient compared with one read of it, and with torch's ``index_add_``."""
    sparse, gradient = SparseProjector(tuned, dim, 0), torch.randn(1, tuned)
    ours, read = medians([lambda: sparse(gradient), lambda: gradient.sum()], 99)
    buckets, signs = torch.randint(dim, (tuned,)), torch.randn(tuned).sign()
    scatter = lambda: torch.zeros(dim).index_add_(0, buckets, gradient[0] * signs)  # noqa: E731
    beside, theirs = medians([lambda: sparse(gradient), scatter])
    return [
        (
            f"sparse projection, {tuned:,} to {dim:,}",
            f"{ours * 1e3:.2f} ms",
            f"{ours / read:.1f} × one read of the gradient (goal 4); a count sketch by torch's "
            f"index_add_ takes {theirs / beside:.0f} × as long",
        )
    ]


def dattri_rows(tuned: int, dim: int) -> list[Row]:
    """dattri's dense projection of the same gradient; its SJLT needs CUDA."""
    from dattri.func.projection import random_project

    gradient = torch.randn(1, tuned)
    sparse = SparseProjector(tuned, dim, 0)
    theirs = random_project(gradient, 1, dim, 32, proj_type="rademacher", device="cpu")
    ours, seconds = medians([lambda: sparse(gradient), lambda: theirs(gradient)], 3)
    spread = [_spread(project, dim) for project in (_ours(dim), _dattri(dim))]
    return [
        (
            f"dattri 0.3.0, rademacher, {tuned:,} to {dim:,}",
            f"{seconds * 1e3:.0f} ms",
            f"{seconds / ours:.0f} × ours; variance of inner products {spread[1]:.2f} there, {spread[0]:.2f} here, of "
            "(‖x‖²‖y‖² + ⟨x,y⟩²)/k",
        )
    ]


def _ours(dim: int) -> Callable[[torch.Tensor, int], torch.Tensor]:
    return lambda pair, seed: SparseProjector(pair.shape[1], dim, seed)(pair)


def _dattri(dim: int) -> Callable[[torch.Tensor, int], torch.Tensor]:
    from dattri.func.projection import random_project

    return lambda pair, seed: random_project(pair, 2, dim, 32, proj_seed=seed, proj_type="rademacher", device="cpu")(
        pair
    )


def _spread(
    project: Callable[[torch.Tensor, int], torch.Tensor], dim: int, size: int = 3000, draws: int = 200
) -> float:
    """The variance of projected inner products over seeds, relative to its bound."""
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, size, generator=generator)
    pair = torch.stack([x, 0.5 * x + noise])
    found = []
    for seed in range(draws):
        a, b = project(pair, seed)
        found.append(float(a @ b))
    exact = float(pair[0] @ pair[1])
    bound = float((pair[0] @ pair[0]) * (pair[1] @ pair[1]) + exact**2) / dim
    return float(torch.tensor(found, dtype=torch.float64).var()) / bound


def main() -> None:
    """Run the benchmark, print the table and write it to the docs."""
    with task_threads():
        rows = [row for size, dim in SIZES for row in projection_rows(size, dim)]
        rows += dattri_rows(SIZES[0][0], 512)
    publish("python -m benchmarks.projections", rows)


if __name__ == "__main__":
    main()
