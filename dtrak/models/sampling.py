"""Drawing images with DDIM (Song et al., 2021), one keyed noise per image, step by step.

η = 0 and clipped predictions of x₀, as in the paper's generation script. The starting noise of
an image depends on its seed alone, so that one seed gives the same pixels in any batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from dtrak.execution.threads import task_threads
from dtrak.models.base import DiffusionModel
from dtrak.models.lora import lora_scaled
from dtrak.utils.noise import keyed_generator


@dataclass(frozen=True)
class GenerationSettings:
    """What an image is generated from; together with the model it fixes every pixel.

    Attributes:
        label: the class, or the prompt of a text-to-image model; None for any.
        guidance: 1 follows the label; above 1 exaggerates it (classifier-free guidance), where the
            model can be told "anything".
        negative: what guidance leads away from, for a text-to-image model.
        lora_scale: how strongly an adapter acts.
    """

    seed: int
    steps: int = 50
    label: str | None = None
    guidance: float = 1.0
    negative: str = ""
    lora_scale: float = 1.0

    def as_dict(self) -> dict[str, Any]:
        """As JSON carries it; what only some models take is left out where it is at its default."""
        content = asdict(self)
        for name in ("negative", "lora_scale"):
            if content[name] == getattr(GenerationSettings, name):
                del content[name]
        return content


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
def sample(model: DiffusionModel, settings: Sequence[GenerationSettings]) -> Iterator[SamplingStep]:
    """Denoise from noise, yielding after each step; stop iterating to cancel.

    Args:
        settings: one an image; they may differ in seed and label only.
    """
    first = settings[0]
    alike = {(s.steps, s.guidance, s.negative, s.lora_scale) for s in settings}
    if len(alike) > 1:
        raise ValueError("pictures drawn together may differ in seed and label only")
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
                noise = away + first.guidance * (noise - away)
        stepped = sampler.step(noise, timestep, x)
        x = stepped.x
        yield SamplingStep(done, first.steps, timestep, x, stepped.x0)


def generate(model: DiffusionModel, settings: Sequence[GenerationSettings]) -> UInt8[np.ndarray, "n r r 3"]:
    """The pictures that :func:`sample` ends with."""
    for step in sample(model, settings):
        last = step
    return model.decode(last.x)


def trajectory(model: DiffusionModel, settings: GenerationSettings) -> tuple[Float[Tensor, "steps c s s"], list[int]]:
    """x̂₀ as predicted at each step of drawing an image, and the step's timestep."""
    steps = [(step.x0[0], step.timestep) for step in sample(model, [settings])]
    return torch.stack([x0 for x0, _ in steps]), [t for _, t in steps]
