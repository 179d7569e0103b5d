"""``python -m benchmarks.features``: features against a plain forward and backward, projections against others'."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from benchmarks.reference import reference_seconds_per_sample
from benchmarks.report import Row, median_seconds, medians, publish
from dtrak.config import FeatureConfig, load_study
from dtrak.features import FeatureExtractor
from dtrak.models import DiffusionModel, new_scheduler
from dtrak.plan import new_network
from dtrak.projection import SparseProjector
from dtrak.studies import StudyFolder, trained_model_config
from dtrak.study_models import load_any, load_study_model
from dtrak.threads import task_threads
from dtrak.words import in_words

K, DIM = 10, 4096
OUTPUTS = ("mean-squared-l2-norm", "loss")


class Captioned(DiffusionModel):
    """A text-to-image network alone: told random numbers in place of a caption, given noise in place of latents."""

    def _check_input(self) -> int:
        return 1

    def condition(self, names: Sequence[str | None]) -> torch.Tensor:
        """See :class:`DiffusionModel`."""
        return torch.randn(1, 77, self.unet.config.cross_attention_dim).repeat(len(names), 1, 1)

    def told(self, condition: torch.Tensor | None) -> dict[str, torch.Tensor | None]:
        """See :class:`DiffusionModel`."""
        return {"encoder_hidden_states": condition}


@dataclass(frozen=True)
class Subject:
    """A model to measure: as diffusers and peft make it, and as dtrak loads it; one input and a name for it.

    Attributes:
        timesteps: that a feature looks at.
        repeats: of each measurement.
    """

    title: str
    plain: DiffusionModel
    model: DiffusionModel
    x: torch.Tensor
    label: str | None
    timesteps: int = K
    repeats: int = 25

    @classmethod
    def of_study(cls, title: str, study: str, x: torch.Tensor) -> "Subject":
        """A study that is built."""
        folder = StudyFolder(load_study(study))
        config = trained_model_config(folder)
        assert config.path
        model = load_study_model(folder)
        return cls(title, load_any(folder.study, config.path, config.adapter), model, x, model.names[0])

    @classmethod
    def lora_study(cls) -> "Subject":
        """ArtBench's network and LoRA with random weights, which cost what trained ones do."""
        study = load_study("artbench2")
        network, x, _ = new_network(study)
        plain = Captioned(network, new_scheduler(), study.resolution)
        model = Captioned(
            copy.deepcopy(network).to(memory_format=torch.channels_last), new_scheduler(), study.resolution
        )  # type: ignore[call-overload]
        return cls(
            "ArtBench's LoRA of Stable Diffusion 1.x, random weights", plain, model, torch.randn_like(x[0]), None, 2, 5
        )

    @property
    def tuned(self) -> int:
        """Weights attributed over."""
        return sum(p.numel() for p in self.model.parameters().values())

    def features(self, *outputs: str, apart: bool = False) -> Callable[[], object]:
        """What computes the features of one image."""
        configs = [FeatureConfig(output=o, timesteps=self.timesteps, projection_dim=DIM, apart=apart) for o in outputs]
        extractor = FeatureExtractor(self.model, configs)
        return lambda: extractor(self.x, "a", self.label)

    def floor(self, model: DiffusionModel) -> Callable[[], object]:
        """A plain forward and backward of one image at all timesteps: what no feature can go below."""
        timesteps = torch.arange(0, 1000, 1000 // self.timesteps)
        batch, noise = self.x.expand(len(timesteps), *self.x.shape), torch.randn(len(timesteps), *self.x.shape)
        condition = model.condition([self.label] * len(timesteps))
        parameters = list(model.parameters().values())

        def work() -> object:
            prediction = model.predict(model.add_noise(batch, noise, timesteps), timesteps, condition)
            return torch.autograd.grad((prediction - noise).square().mean(), parameters)

        return work


def feature_rows(subject: Subject) -> tuple[list[Row], float]:
    """Features against a plain pass; the seconds of a feature of one output function."""
    works = [
        subject.floor(subject.plain),
        subject.floor(subject.model),
        subject.features(OUTPUTS[0]),
        subject.features(*OUTPUTS),
        subject.features(*OUTPUTS, apart=True),
    ]
    base, own, one, both, apart = medians(works, subject.repeats)
    what = f"{subject.title}, {subject.tuned:,} tuned weights: forward and backward, one image at {subject.timesteps}"
    rows = [
        (f"{what} timesteps (the floor)", _clock(base), ""),
        ("the same with weights laid out channels last, as dtrak loads it", _clock(own), f"{own / base:.2f} × floor"),
        ("feature of one output function", _clock(one), f"{one / base:.2f} × floor (goal 1.2)"),
        ("features of both output functions", _clock(both), f"{both / base:.2f} × floor (goal 1.6)"),
        ("the same, each timestep kept apart", _clock(apart), f"{apart / base:.2f} × floor"),
    ]
    return rows, one


def projection_rows(tuned: int, dim: int) -> list[Row]:
    """The sparse projection of one gradient against a bare pass over it, and against the same sums by torch."""
    sparse, gradient = SparseProjector(tuned, dim, 0), torch.randn(1, tuned)
    buckets, signs = torch.randint(dim, (tuned,)), torch.randn(tuned).sign()
    scattered = lambda: torch.zeros(dim).index_add_(0, buckets, gradient[0] * signs)  # noqa: E731
    ours, read, theirs = medians([lambda: sparse(gradient), lambda: gradient.sum(), scattered], 49)
    return [
        (
            f"sparse projection, {tuned:,} to {dim:,}",
            f"{ours * 1e3:.2f} ms",
            f"{ours / read:.1f} × one read of the gradient (goal 4); torch's index_add_ takes {theirs / ours:.0f} × as "
            "long",
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


def reference_rows(subject: Subject, one: float) -> list[Row]:
    """The reference recipe on the same model and k; it changes the model, so it comes last."""
    rows = []
    index = next(iter(subject.plain.classes.values()))
    for count in (1, 8):
        gradients, dense = reference_seconds_per_sample(subject.plain, subject.x, index, K, DIM, count)
        rows.append(
            (
                f"{subject.title}: reference recipe, batch of {count}: vmap(grad) and BasicProjector of traker to "
                f"{DIM:,}, a sample",
                f"{_clock(gradients + dense)}, of which projection {_clock(dense)}",
                f"{(gradients + dense) / one:.1f} × ours (goal 30)",
            )
        )
    return rows


def _clock(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms" if seconds < 10 else in_words(seconds)


def main() -> None:
    """Measure, print and write."""
    folder = StudyFolder(load_study("demo"))
    rows = list[Row]()
    with task_threads():
        x = load_study_model(folder).encode(folder.table.pixels[:1])[0]
        demo = Subject.of_study("demo (LoRA)", "demo", x)
        base = Subject.of_study("base of the demo, all of its weights", "openmoji-base", x)
        ones = []
        for subject in (demo, base):
            found, one = feature_rows(subject)
            rows += found
            ones.append(one)
        rows += feature_rows(Subject.lora_study())[0]
        for size, dim in ((demo.tuned, DIM), (base.tuned, DIM), (38_307_203, 32_768)):
            rows += projection_rows(size, dim)
        rows += dattri_rows(demo.tuned, 512)
        for subject, one in zip((demo, base), ones, strict=True):
            rows += reference_rows(subject, one)
    publish("python -m benchmarks.features", rows)


if __name__ == "__main__":
    main()
