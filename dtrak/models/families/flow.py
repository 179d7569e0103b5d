"""What the transformers trained by flow matching share: tokens of 2×2 pixels, noise levels as times, velocities."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dtrak.models.base import Network
from dtrak.models.families.base import PipelineModel
from dtrak.models.flow_matching import FlowMatching
from dtrak.utils.errors import DtrakError

Told = dict[str, Tensor | None]


class FlowModel(PipelineModel):
    """A pipeline whose network predicts velocities.

    Attributes:
        patch: pixels of a latent along a token's side.
        even: whether the pipeline's sampler has evenly spaced noise levels.
        shift: see :class:`~dtrak.models.process.FlowMatching`.
    """

    patch: int = 2
    even: ClassVar[bool] = True
    shift: ClassVar[Callable[[int, int], float] | None] = None

    def process_of(self, pipe: Any, shape: tuple[int, int, int]) -> FlowMatching:
        """See :class:`PipelineModel`.

        Raises:
            DtrakError: the latents do not divide into patches.
        """
        if shape[1] % self.patch or shape[2] % self.patch:
            raise DtrakError("The resolution does not divide into the network's patches.", hint="Use a multiple of 16.")
        tokens = shape[1] * shape[2] // self.patch**2
        return FlowMatching(pipe.scheduler, tokens, self.even, type(self).shift)

    def call(self, network: Network, x: Tensor, times: Tensor, told: Told) -> Tensor:
        """See :class:`DiffusionModel`."""
        return self.velocity(network, x, self.process.level(times).to(x.device), told)

    @abstractmethod
    def velocity(self, network: Network, x: Tensor, sigmas: Tensor, told: Told) -> Tensor:
        """The velocity v = ε − x₀ that the network predicts at noise levels σ."""


class DistilledFlow(FlowModel):
    """A network that may take a guidance scale as an input.

    Attributes:
        guidance: this scale; None if it takes none.
    """

    def __init__(
        self, pipe: Any, network: Any, resolution: int, dtype: torch.dtype, prompts: Sequence[str] = (),
        guidance: float = 1.0,
    ):  # fmt: skip
        super().__init__(pipe, network, resolution, dtype, prompts)
        self.guidance = guidance if network.config.guidance_embeds else None
        self.extra = (self.guidance,)

    def velocity(self, network: Network, x: Tensor, sigmas: Tensor, told: Told) -> Tensor:
        """See :class:`FlowModel`."""
        return self.guided_velocity(network, x, sigmas, told, self.guidance)

    @staticmethod
    @abstractmethod
    def guided_velocity(network: Network, x: Tensor, sigmas: Tensor, told: Told, guidance: float | None) -> Tensor:
        """:meth:`velocity` for a guidance scale, or None."""


def tokens_of(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n hw c"]:
    """The pixels of inputs as a sequence, row by row."""
    return x.flatten(2).transpose(1, 2)


def image_of(tokens: Float[Tensor, "n hw c"], like: Float[Tensor, "n d h w"]) -> Float[Tensor, "n c h w"]:
    """The inverse of :func:`tokens_of`, with the sides of ``like``."""
    return tokens.transpose(1, 2).unflatten(2, like.shape[2:])


def padded(tokens: Float[Tensor, "t d"], length: int) -> tuple[Float[Tensor, "length d"], Float[Tensor, " length"]]:
    """Token embeddings filled up with zeros to ``length``, and which of them are real (1, else 0)."""
    missing = length - len(tokens)
    real = torch.ones(len(tokens), device=tokens.device)
    return F.pad(tokens, (0, 0, 0, missing)), F.pad(real, (0, missing))
