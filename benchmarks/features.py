"""``python -m benchmarks.features``: features vs a plain forward and backward pass and the reference recipe."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.reference import reference_seconds_per_sample
from benchmarks.report import Row, median_seconds, medians, publish
from dtrak.config import FeatureConfig, load_study
from dtrak.execution.threads import task_threads
from dtrak.gradients.extractor import FeatureExtractor
from dtrak.models.base import DiffusionModel
from dtrak.models.blank import new_network
from dtrak.models.codec import PixelCodec
from dtrak.models.conditioner import Conditioner
from dtrak.models.diffusion import EpsilonDiffusion
from dtrak.models.loading import load_any, load_study_model
from dtrak.models.pixel import PixelModel, new_scheduler
from dtrak.study.folder import StudyFolder, trained_model_config
from dtrak.utils.text import in_words

K, DIM = 10, 4096
OUTPUTS = ("mean-squared-l2-norm", "loss")


class RandomPrompts(Conditioner):
    """Random conditioning instead of captions."""

    takes_text, names = True, []

    def __init__(self, width: int):
        self._width, self._device = width, "cpu"

    def to(self, device: torch.device | str) -> None:
        """See :class:`Conditioner`."""
        self._device = device

    def condition(self, names: Sequence[str | None]) -> torch.Tensor:
        """See :class:`Conditioner`."""
        return torch.randn(1, 77, self._width, device=self._device).repeat(len(names), 1, 1)

    def free_condition(self, count: int, negative: str = "") -> torch.Tensor:
        """See :class:`Conditioner`."""
        return self.condition([negative] * count)

    def told(self, condition: torch.Tensor | None) -> dict[str, torch.Tensor | None]:
        """See :class:`Conditioner`."""
        return {"encoder_hidden_states": condition}

    def check_name(self, name: str | None) -> None:
        """See :class:`Conditioner`."""


class Captioned(PixelModel):
    """A text-to-image network without VAE and text encoder: random conditioning, and noise as latents."""

    def __init__(self, network: torch.nn.Module, scheduler: Any, resolution: int):
        config: Any = network.config
        DiffusionModel.__init__(
            self, network, PixelCodec(3, None, resolution), RandomPrompts(config.cross_attention_dim),
            EpsilonDiffusion(scheduler), resolution,
        )  # fmt: skip
        self.codec.shape = (4, config.sample_size, config.sample_size)


@dataclass(frozen=True)
class Subject:
    """A model to benchmark, as built by diffusers and peft (``plain``) and as loaded by dtrak, with one input.

    Attributes:
        timesteps: timesteps of a feature.
        repeats: repetitions of each measurement.
    """

    title: str
    plain: DiffusionModel
    model: DiffusionModel
    x: torch.Tensor
    label: str | None
    timesteps: int = K
    repeats: int = 25

    @classmethod
    def of_study(cls, title: str, study: str, adapter: bool = True) -> "Subject":
        """From a prepared study; without its adapter, all weights of its base are tuned."""
        folder = StudyFolder(load_study(study))
        config = trained_model_config(folder)
        assert config.path
        plain = load_any(folder.study, config.path, config.adapter if adapter else None)
        model = load_study_model(folder) if adapter else plain
        x = model.encode(folder.table.pixels[:1])[0]
        return cls(title, plain, model, x, folder.table.names[0])

    @classmethod
    def lora_study(cls) -> "Subject":
        """ArtBench's network and LoRA with random weights, which take the same time as trained ones."""
        study = load_study("artbench2")
        blank = new_network(study)
        model = Captioned(blank.network, new_scheduler(), study.resolution)
        title = "ArtBench's LoRA of Stable Diffusion 1.x, random weights"
        return cls(title, model, model, torch.randn_like(blank.x[0]), None, 2, 5)

    @property
    def tuned(self) -> int:
        """The number of tuned weights."""
        return sum(p.numel() for p in self.model.parameters().values())

    def features(self, *outputs: str, apart: bool = False) -> Callable[[], object]:
        """A function that computes the features of one image."""
        configs = [FeatureConfig(output=o, timesteps=self.timesteps, projection_dim=DIM, apart=apart) for o in outputs]
        extractor = FeatureExtractor(self.model, configs)
        return lambda: extractor(self.x, "a", self.label)

    def floor(self, model: DiffusionModel) -> Callable[[], object]:
        """A plain forward and backward pass of one image at all timesteps: the lower bound for a feature."""
        timesteps = torch.arange(0, 1000, 1000 // self.timesteps)
        batch, noise = self.x.expand(len(timesteps), *self.x.shape), torch.randn(len(timesteps), *self.x.shape)
        condition = model.condition([self.label] * len(timesteps))
        parameters = list(model.parameters().values())

        def work() -> object:
            prediction = model.predict(model.add_noise(batch, noise, timesteps), timesteps, condition)
            return torch.autograd.grad((prediction - noise).square().mean(), parameters)

        return work


def feature_rows(subject: Subject) -> list[Row]:
    """Features compared with a plain pass."""
    works = [
        subject.floor(subject.plain),
        subject.features(OUTPUTS[0]),
        subject.features(*OUTPUTS),
        subject.features(*OUTPUTS, apart=True),
        *([] if subject.model is subject.plain else [subject.floor(subject.model)]),
    ]
    base, one, both, apart, *own = medians(works, subject.repeats)
    what = f"{subject.title}, {subject.tuned:,} tuned weights: forward and backward, one image at {subject.timesteps}"
    laid_out = "the same with weights laid out channels last, as dtrak loads it"
    return [
        (f"{what} timesteps (the floor)", _clock(base), ""),
        *((laid_out, _clock(seconds), f"{seconds / base:.2f} × floor") for seconds in own),
        ("feature of one output function", _clock(one), f"{one / base:.2f} × floor (goal 1.2)"),
        ("features of both output functions", _clock(both), f"{both / base:.2f} × floor (goal 1.6)"),
        ("the same, each timestep kept apart", _clock(apart), f"{apart / base:.2f} × floor (goal 1.6)"),
    ]


def reference_rows(subject: Subject) -> list[Row]:
    """The reference recipe, once, at the same k, then dtrak's feature. Modifies the plain model, so call it last."""
    rows = []
    for count in (1, 8):
        gradients, dense = reference_seconds_per_sample(subject.plain, subject.x, subject.label, K, DIM, count)
        one = median_seconds(subject.features(OUTPUTS[0]))
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


def demo() -> list[Row]:
    """The demo's LoRA and its base, each with the reference recipe."""
    lora = Subject.of_study("demo (LoRA)", "demo")
    base = Subject.of_study("base of the demo, all of its weights", "demo", adapter=False)
    return [row for rows in (feature_rows, reference_rows) for subject in (lora, base) for row in rows(subject)]


def artbench() -> list[Row]:
    """A LoRA on Stable Diffusion 1.x."""
    return feature_rows(Subject.lora_study())


PARTS = {"demo": demo, "artbench": artbench}


def main() -> None:
    """Run some parts, or all; each writes its own table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="|".join(PARTS), help="default: all")
    for part in parser.parse_args().parts or PARTS:
        with task_threads():
            publish(f"python -m benchmarks.features {part}", PARTS[part]())


if __name__ == "__main__":
    main()
