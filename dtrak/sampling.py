"""Drawing images with DDIM (Song et al., 2021), one keyed noise per image, step by step.

η = 0 and clipped predictions of x₀, as in the paper's generation script. The starting noise of
an image depends on its seed alone, so that one seed gives the same pixels in any batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler
from jaxtyping import Float
from torch import Tensor

from dtrak.models import DiffusionModel
from dtrak.noise import keyed_generator
from dtrak.threads import one_thread


@dataclass(frozen=True)
class GenerationSettings:
    """What an image is generated from; together with the model it fixes every pixel."""

    seed: int
    steps: int = 50
    label: str | None = None
    guidance: float = 1.0

    def as_dict(self) -> dict[str, Any]:
        """As JSON carries it."""
        return asdict(self)


@dataclass(frozen=True)
class SamplingStep:
    """The state after one denoising step.

    Attributes:
        done: steps taken; ``total`` of them make an image.
        timestep: the timestep just left.
        x: the noisy latents.
        x0: the clean latents as predicted at this step.
    """

    done: int
    total: int
    timestep: int
    x: Float[Tensor, "n c s s"]
    x0: Float[Tensor, "n c s s"]


def initial_noise(seeds: Sequence[int], shape: tuple[int, ...]) -> Float[Tensor, "n *shape"]:
    """Standard normal noise, one seed an image."""
    rows = [torch.from_numpy(keyed_generator("sampling", s, "").standard_normal(shape, "float32")) for s in seeds]
    return torch.stack(rows)


@torch.no_grad()
def sample(
    model: DiffusionModel,
    seeds: Sequence[int],
    steps: int = 50,
    labels: Sequence[str | None] | None = None,
    guidance: float = 1.0,
) -> Iterator[SamplingStep]:
    """Denoise from noise, yielding after each step; stop iterating to cancel.

    Args:
        seeds: one an image.
        labels: one an image for a model with classes; None draws from any class.
        guidance: 1 follows the class; above 1 exaggerates it (classifier-free guidance), where the
            model has a null class.
    """
    scheduler = DDIMScheduler.from_config(model.scheduler.config, clip_sample=True)
    scheduler.set_timesteps(steps)
    x = initial_noise(seeds, model.latent_shape).to(model.device)
    classes = model.class_tensor(labels or [None] * len(seeds))
    null = None
    if guidance != 1 and classes is not None and model.null_class is not None:
        null = torch.full_like(classes, model.null_class)
    for done, timestep in enumerate(scheduler.timesteps.tolist(), 1):
        t = torch.full((len(seeds),), timestep, device=model.device)
        with one_thread():
            noise = model.predict(x, t, classes)
            if null is not None:
                free = model.predict(x, t, null)
                noise = free + guidance * (noise - free)
        result = scheduler.step(noise, timestep, x)
        x = result.prev_sample
        yield SamplingStep(done, steps, timestep, x, result.pred_original_sample)


def trajectory(model: DiffusionModel, settings: GenerationSettings) -> tuple[Float[Tensor, "steps c s s"], list[int]]:
    """x̂₀ as predicted at each step of drawing an image, and the step's timestep."""
    drawn = sample(model, [settings.seed], settings.steps, [settings.label], settings.guidance)
    steps = [(step.x0[0], step.timestep) for step in drawn]
    return torch.stack([x0 for x0, _ in steps]), [t for _, t in steps]
