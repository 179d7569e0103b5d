"""Generating images with DDIM (Song et al., ICLR 2021), step by step.

η = 0, and pixel models clip predictions of x₀, as in the paper's generation script. The initial noise of
an image depends only on its seed, so a seed gives the same image in any batch.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from dtrak.execution.memory import with_smaller_batches
from dtrak.execution.threads import task_threads
from dtrak.models.base import DiffusionModel
from dtrak.models.generation import GenerationSettings
from dtrak.models.lora import lora_merged, lora_scaled
from dtrak.utils.noise import keyed_generator

TOGETHER = 16  # images of a batch, where memory allows it


@dataclass(frozen=True)
class SamplingStep:
    """The state after one denoising step.

    Attributes:
        done: steps done, of ``total``.
        timestep: the timestep of this step.
        x: the noisy inputs after this step.
        x0: the clean inputs predicted at this step.
    """

    done: int
    total: int
    timestep: float
    x: Float[Tensor, "n c s s"]
    x0: Float[Tensor, "n c s s"]


def initial_noise(seeds: Sequence[int], shape: tuple[int, ...]) -> Float[Tensor, "n *shape"]:
    """Standard normal noise, one seed per image."""
    rows = [torch.from_numpy(keyed_generator("sampling", s, "").standard_normal(shape, "float32")) for s in seeds]
    return torch.stack(rows)


@torch.no_grad()
def sample(model: DiffusionModel, settings: Sequence[GenerationSettings]) -> Iterator[SamplingStep]:
    """Generate images, yielding after each denoising step; stop iterating to cancel.

    Args:
        settings: one per image; they may differ only in seed and label.

    Raises:
        ValueError: they differ in something else.
    """
    first = settings[0]
    alike = {(s.steps, s.guidance, s.negative, s.lora_scale) for s in settings}
    if len(alike) > 1:
        raise ValueError("settings of one batch may differ only in seed and label")
    sampler = model.process.sampler(first.steps, model.codec.clips)
    x = initial_noise([s.seed for s in settings], model.latent_shape).to(model.device)
    condition = model.condition([s.label for s in settings])
    free = model.conditioner.free_condition(len(settings), first.negative) if first.guidance != 1 else None
    for done, timestep in enumerate(sampler.times, 1):
        t = torch.full((len(settings),), timestep, device=model.device)
        with task_threads(), lora_scaled(model.network, first.lora_scale):
            noise = model.predict(x, t, condition)
            if free is not None:
                away = model.predict(x, t, free)
                noise = model.guided(noise, away, first.guidance)
        stepped = sampler.step(noise, timestep, x)
        x = stepped.x
        yield SamplingStep(done, first.steps, timestep, x, stepped.x0)


def generate(model: DiffusionModel, settings: Sequence[GenerationSettings]) -> UInt8[np.ndarray, "n r r 3"]:
    """The final images of :func:`sample`."""
    with merged_for(model, settings[0]):
        for step in sample(model, settings):
            last = step
    return model.decode(last.x)


def generate_all(
    model: DiffusionModel,
    settings: Sequence[GenerationSettings],
    report: Callable[[int, int], None] = lambda done, total: None,
) -> UInt8[np.ndarray, "n r r 3"]:
    """:func:`generate` in batches that fit into memory.

    Args:
        report: called with (images generated, total images).
    """
    images: list[UInt8[np.ndarray, "r r 3"]] = []
    size = TOGETHER

    def following(size: int) -> UInt8[np.ndarray, "n r r 3"]:
        return generate(model, settings[len(images) : len(images) + size])

    while len(images) < len(settings):
        drawn, size = with_smaller_batches(following, size)
        images.extend(drawn)
        report(len(images), len(settings))
    return np.stack(images) if images else np.empty((0, model.resolution, model.resolution, 3), np.uint8)


@contextlib.contextmanager
def merged_for(model: DiffusionModel, settings: GenerationSettings) -> Iterator[None]:
    """Merge the LoRA, at the strength of ``settings``, while :func:`sample` runs to its end within the block."""
    with task_threads(), lora_merged(model.network, settings.lora_scale):
        yield


def trajectory(model: DiffusionModel, settings: GenerationSettings) -> tuple[Float[Tensor, "steps c s s"], list[float]]:
    """The x̂₀ predicted at each step of generating an image, and the steps' timesteps."""
    with merged_for(model, settings):
        steps = [(step.x0[0], step.timestep) for step in sample(model, [settings])]
    return torch.stack([x0 for x0, _ in steps]), [t for _, t in steps]
