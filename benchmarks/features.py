"""``python -m benchmarks.features``: features against a plain forward and backward, projections against others'."""

from collections.abc import Callable

import torch

from benchmarks.reference import reference_seconds_per_sample
from benchmarks.report import Row, median_seconds, medians, publish
from dtrak.config import FeatureConfig, load_study
from dtrak.features import FeatureExtractor
from dtrak.models import DiffusionModel
from dtrak.projection import SparseProjector
from dtrak.studies import StudyFolder, trained_model_config
from dtrak.study_models import load_any, load_study_model
from dtrak.threads import task_threads

K, DIM = 10, 4096


def floor(model: DiffusionModel, x: torch.Tensor) -> Callable[[], object]:
    """A plain forward and backward of one image at K timesteps: what no feature can go below."""
    timesteps = torch.arange(0, 1000, 1000 // K)
    batch, noise = x.expand(K, *x.shape), torch.randn(K, *x.shape)
    condition = model.condition([model.names[0]] * K)
    parameters = list(model.parameters().values())

    def work() -> object:
        prediction = model.predict(model.add_noise(batch, noise, timesteps), timesteps, condition)
        return torch.autograd.grad((prediction - noise).square().mean(), parameters)

    return work


def feature_rows(name: str, study: str, x: torch.Tensor) -> tuple[list[Row], float, int]:
    """A study's features against a plain pass; the seconds of a feature of one output function; the tuned weights."""
    folder = StudyFolder(load_study(study))
    model, config = load_study_model(folder), trained_model_config(folder)
    assert config.path
    plain = load_any(folder.study, config.path, config.adapter)  # as diffusers and peft load it

    def features(*outputs: str, apart: bool = False) -> Callable[[], object]:
        configs = [FeatureConfig(output=o, timesteps=K, projection_dim=DIM, apart=apart) for o in outputs]
        extractor = FeatureExtractor(model, configs)
        return lambda: extractor(x, "a", model.names[0])

    outputs = ("mean-squared-l2-norm", "loss")
    works = [floor(plain, x), floor(model, x), features(outputs[0]), features(*outputs), features(*outputs, apart=True)]
    base, own, one, both, apart = medians(works, 25)
    tuned = sum(p.numel() for p in model.parameters().values())
    title = f"{name}, {tuned:,} tuned weights"
    return (
        [
            (f"{title}: forward and backward, one image at {K} timesteps (the floor)", f"{base * 1e3:.0f} ms", ""),
            (
                "the same with weights laid out channels last, as dtrak loads it",
                f"{own * 1e3:.0f} ms",
                f"{own / base:.2f} × floor",
            ),
            ("feature of one output function", f"{one * 1e3:.0f} ms", f"{one / base:.2f} × floor (goal 1.2)"),
            ("features of both output functions", f"{both * 1e3:.0f} ms", f"{both / base:.2f} × floor (goal 1.6)"),
            ("the same, each timestep kept apart", f"{apart * 1e3:.0f} ms", f"{apart / base:.2f} × floor (goal 1.6)"),
        ],
        one,
        tuned,
    )


def projection_rows(tuned: int, dim: int) -> list[Row]:
    """The sparse projection of one gradient against a bare pass over it, and against dattri's."""
    sparse, gradient = SparseProjector(tuned, dim, 0), torch.randn(1, tuned)
    ours, read = medians([lambda: sparse(gradient), lambda: gradient.sum()], 99)
    return [
        (
            f"sparse projection, {tuned:,} to {dim:,}",
            f"{ours * 1e3:.2f} ms",
            f"{ours / read:.1f} × one read of the gradient (goal 4)",
        )
    ]


def dattri_rows(tuned: int, dim: int) -> list[Row]:
    """dattri's dense projection of the same gradient; its SJLT runs on CUDA alone."""
    from dattri.func.projection import random_project

    gradient = torch.randn(1, tuned)
    sparse = SparseProjector(tuned, dim, 0)
    ours = median_seconds(lambda: sparse(gradient))
    theirs = random_project(gradient, 1, dim, 32, proj_type="rademacher", device="cpu")
    seconds = median_seconds(lambda: theirs(gradient), 3)
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
    """The variance of projected inner products over seeds, as a share of its bound."""
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
    """Measure, print and write."""
    folder = StudyFolder(load_study("demo"))
    table, rows = folder.table, list[Row]()
    with task_threads():
        demo = load_study_model(folder)
        x = demo.encode(table.pixels[:1])[0]
        found, one, tuned = feature_rows("demo (LoRA)", "demo", x)
        rows += found
        found, _, all_tuned = feature_rows("base of the demo, all of its weights", "openmoji-base", x)
        rows += found
        for size, dim in ((tuned, DIM), (all_tuned, DIM), (38_307_203, 32_768)):
            rows += projection_rows(size, dim)
        rows += dattri_rows(tuned, 512)
        class_index = next(iter(demo.classes.values()))
        for count in (1, 8):
            gradients, dense = reference_seconds_per_sample(demo, x, class_index, K, 2048, count)
            rows.append(
                (
                    f"reference recipe, batch of {count}: vmap(grad) and BasicProjector of traker to 2,048, per sample",
                    f"{(gradients + dense) * 1e3:.0f} ms, of which projection {dense * 1e3:.0f} ms",
                    f"{(gradients + dense) / one:.1f} × ours (goal 30)",
                )
            )
    publish("python -m benchmarks.features", rows)


if __name__ == "__main__":
    main()
