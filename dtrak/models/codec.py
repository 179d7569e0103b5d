"""Codecs: between 8-bit images and the network's inputs."""

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from dtrak.utils.errors import DtrakError

IMAGES_A_PASS = 8  # of a VAE

Pixels = UInt8[np.ndarray, "n h w 3"]


class Codec(ABC):
    """Images to inputs and back.

    Attributes:
        shape: of one input.
        clips: whether a sampler clips predictions of x₀ to [−1, 1].
        preview_every: denoising steps between previews, by what decoding costs.
    """

    shape: tuple[int, int, int]
    clips: bool
    preview_every: int

    @abstractmethod
    def to(self, device: torch.device | str) -> None:
        """Move what it computes with."""

    @abstractmethod
    def encode(self, pixels: Pixels) -> Float[Tensor, "n c s s"]:
        """Images to inputs, deterministic."""

    @abstractmethod
    def decode(self, x: Float[Tensor, "n c s s"]) -> Pixels:
        """Inputs to 8-bit images."""

    @abstractmethod
    def training_inputs(self, pixels: Pixels) -> Float[Tensor, "n *kept"]:
        """What :meth:`training_input` draws from, kept for all images while a model is trained."""

    @abstractmethod
    def training_input(
        self, kept: Float[Tensor, " *kept"], flip: bool, random: np.random.Generator
    ) -> Float[Tensor, "c s s"]:
        """One image as one step of training sees it.

        Args:
            random: for what is random about it, beside the flip.
        """


class PixelCodec(Codec):
    """Pixels in [−1, 1]; p×p of them are folded into channels where the network takes ``3·p²`` channels.

    Args:
        channels: that the network takes.
        sample_size: width of its input, if it says so.
        resolution: of the images.

    Raises:
        DtrakError: these do not fit.
    """

    clips = True
    preview_every = 1

    def __init__(self, channels: int, sample_size: int | None, resolution: int):
        self.patch = _patch(channels, sample_size, resolution)
        side = resolution // self.patch
        self.shape = (channels, side, side)

    def to(self, device: torch.device | str) -> None:
        """See :class:`Codec`."""

    def encode(self, pixels: Pixels) -> Float[Tensor, "n c s s"]:
        """See :class:`Codec`; an orthonormal reordering, so that noise stays noise."""
        x = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
        return F.pixel_unshuffle(x, self.patch).contiguous()

    def decode(self, x: Float[Tensor, "n c s s"]) -> Pixels:
        """The inverse of :meth:`encode` up to clipping and rounding."""
        return _to_pixels(F.pixel_shuffle(x.float().cpu(), self.patch))

    def flip(self, x: Float[Tensor, "c s s"]) -> Float[Tensor, "c s s"]:
        """Mirror one input left to right."""
        return F.pixel_unshuffle(F.pixel_shuffle(x, self.patch).flip(-1), self.patch)

    def training_inputs(self, pixels: Pixels) -> Float[Tensor, "n *kept"]:
        """See :class:`Codec`."""
        return self.encode(pixels)

    def training_input(
        self, kept: Float[Tensor, " *kept"], flip: bool, random: np.random.Generator
    ) -> Float[Tensor, "c s s"]:
        """See :class:`Codec`."""
        return self.flip(kept) if flip else kept


class VaeCodec(Codec):
    """The latents of a diffusers ``AutoencoderKL``; :meth:`encode` takes the posterior's mode, training draws from it.

    Raises:
        DtrakError: the resolution is no multiple of the VAE's factor.
    """

    clips = False
    preview_every = 10  # decoding costs more than the step itself

    def __init__(self, vae: Any, resolution: int):
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        if resolution % factor:
            raise DtrakError(f"Resolution {resolution} is not a multiple of the VAE's factor {factor}.")
        self.vae = vae.eval()
        self.shape = (vae.config.latent_channels, resolution // factor, resolution // factor)
        self._scale: float = vae.config.scaling_factor

    def to(self, device: torch.device | str) -> None:
        """See :class:`Codec`."""
        self.vae.to(device)

    @torch.no_grad()
    def encode(self, pixels: Pixels) -> Float[Tensor, "n c s s"]:
        """See :class:`Codec`."""
        return torch.cat([p.mode() * self._scale for p in self._posteriors(pixels)]).float()

    @torch.no_grad()
    def decode(self, x: Float[Tensor, "n c s s"]) -> Pixels:
        """See :class:`Codec`."""
        rows = [self.vae.decode(row[None].to(self.vae.dtype) / self._scale).sample for row in x]
        return _to_pixels(torch.cat(rows).float().cpu())

    @torch.no_grad()
    def training_inputs(self, pixels: Pixels) -> Float[Tensor, "n 4 c s s"]:
        """Mean and standard deviation of the posterior of each image, and of its mirror image."""
        pixels = np.asarray(pixels)
        sides = [
            torch.cat([torch.stack([p.mean, p.std], dim=1).float().cpu() for p in self._posteriors(images)])
            for images in (pixels, pixels[:, :, ::-1])
        ]
        return torch.cat(sides, dim=1)

    def training_input(
        self, kept: Float[Tensor, " *kept"], flip: bool, random: np.random.Generator
    ) -> Float[Tensor, "c s s"]:
        """See :class:`Codec`."""
        mean, deviation = kept[2:] if flip else kept[:2]
        noise = torch.from_numpy(random.standard_normal(tuple(mean.shape), np.float32))
        return (mean + deviation * noise) * self._scale

    def _posteriors(self, pixels: Pixels) -> Any:
        for start in range(0, len(pixels), IMAGES_A_PASS):
            part = np.array(pixels[start : start + IMAGES_A_PASS])
            x = torch.from_numpy(part).permute(0, 3, 1, 2).float() / 127.5 - 1
            yield self.vae.encode(x.to(self.vae.device, self.vae.dtype)).latent_dist


def _to_pixels(images: Float[Tensor, "n 3 h w"]) -> Pixels:
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def _patch(in_channels: int, sample_size: int | None, resolution: int) -> int:
    patch = math.isqrt(in_channels // 3)
    if in_channels != 3 * patch**2:
        raise DtrakError(
            f"The network takes {in_channels} channels; RGB images give 3, or 3·p² when p×p pixels are folded.",
            hint="Stable Diffusion 1.x needs 'model.kind: text-to-image'; greyscale networks cannot be used.",
        )
    if patch > 1 and sample_size and sample_size * patch != resolution:
        raise DtrakError(
            f"The network draws {sample_size * patch}×{sample_size * patch} images, the study says {resolution}.",
            hint=f"Set 'resolution: {sample_size * patch}'.",
        )
    if resolution % patch:
        raise DtrakError(f"Resolution {resolution} is not a multiple of the network's patch {patch}.")
    return patch
