"""Codecs: conversion between 8-bit images and network inputs."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from dtrak.utils.errors import DtrakError

IMAGES_A_PASS = 8  # images per pass of a VAE

Pixels = UInt8[np.ndarray, "n h w 3"]


class Codec(ABC):
    """Converts images to network inputs and back.

    Attributes:
        shape: shape of one input, (c, s, s).
        clips: whether samplers clip predictions of x₀ to [−1, 1].
        preview_every: denoising steps between previews, chosen by the cost of decoding.
    """

    shape: tuple[int, int, int]
    clips: bool
    preview_every: int

    @abstractmethod
    def to(self, device: torch.device | str) -> None:
        """Move its modules to a device."""

    @abstractmethod
    def encode(self, pixels: Pixels) -> Float[Tensor, "n c s s"]:
        """Images to inputs; deterministic."""

    @abstractmethod
    def decode(self, x: Float[Tensor, "n c s s"]) -> Pixels:
        """Inputs to 8-bit images."""

    @abstractmethod
    def training_inputs(self, pixels: Pixels, flips: bool = True) -> Float[Tensor, "n *kept"]:
        """Precomputed data for all images, from which :meth:`training_input` makes inputs during training.

        Args:
            flips: whether mirror images may be asked for.
        """

    @abstractmethod
    def training_input(
        self, kept: Float[Tensor, " *kept"], flip: bool, random: np.random.Generator
    ) -> Float[Tensor, "c s s"]:
        """The input for one image in one training step.

        Args:
            kept: the image's row of :meth:`training_inputs`.
            flip: mirror the image left to right.
            random: generator for any other randomness.
        """


class PixelCodec(Codec):
    """Pixels in [−1, 1]; p×p patches are folded into channels if the network has ``3·p²`` input channels.

    Args:
        channels: input channels of the network.
        sample_size: input width in the network's configuration, if given.
        resolution: width and height of the images, in pixels.

    Raises:
        DtrakError: these do not match.
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
        """See :class:`Codec`; folding reorders pixels, so Gaussian noise stays Gaussian noise."""
        x = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
        return F.pixel_unshuffle(x, self.patch).contiguous()

    def decode(self, x: Float[Tensor, "n c s s"]) -> Pixels:
        """The inverse of :meth:`encode` up to clipping and rounding."""
        return _to_pixels(F.pixel_shuffle(x.float().cpu(), self.patch))

    def flip(self, x: Float[Tensor, "c s s"]) -> Float[Tensor, "c s s"]:
        """Mirror one input left to right."""
        return F.pixel_unshuffle(F.pixel_shuffle(x, self.patch).flip(-1), self.patch)

    def training_inputs(self, pixels: Pixels, flips: bool = True) -> Float[Tensor, "n *kept"]:
        """See :class:`Codec`."""
        return self.encode(pixels)

    def training_input(
        self, kept: Float[Tensor, " *kept"], flip: bool, random: np.random.Generator
    ) -> Float[Tensor, "c s s"]:
        """See :class:`Codec`."""
        return self.flip(kept) if flip else kept


class VaeCodec(Codec):
    """The latents of a diffusers ``AutoencoderKL``: :meth:`encode` uses the posterior's mode, training samples from it.

    Raises:
        DtrakError: the resolution is not a multiple of the VAE's factor.
    """

    clips = False
    preview_every = 10  # decoding costs more than the step itself

    def __init__(self, vae: Any, resolution: int):
        factor = self.factor_of(vae)
        if resolution % factor:
            raise DtrakError(f"Resolution {resolution} is not a multiple of the VAE's factor {factor}.")
        self.vae = vae.eval()
        self.shape = (self.channels_of(vae), resolution // factor, resolution // factor)

    def factor_of(self, vae: Any) -> int:
        """Pixels along an input's pixel."""
        return int(2 ** (len(vae.config.block_out_channels) - 1))

    def channels_of(self, vae: Any) -> int:
        """Channels of an input."""
        return int(vae.config.latent_channels)

    def normalised(self, latents: Float[Tensor, "n c g g"]) -> Float[Tensor, "n d s s"]:
        """Latents of the VAE to inputs of the network."""
        return (latents - (getattr(self.vae.config, "shift_factor", None) or 0.0)) * self.vae.config.scaling_factor

    def restored(self, x: Float[Tensor, "n d s s"]) -> Float[Tensor, "n c g g"]:
        """The inverse of :meth:`normalised`."""
        return x / self.vae.config.scaling_factor + (getattr(self.vae.config, "shift_factor", None) or 0.0)

    def to(self, device: torch.device | str) -> None:
        """See :class:`Codec`."""
        self.vae.to(device)

    @torch.no_grad()
    def encode(self, pixels: Pixels) -> Float[Tensor, "n c s s"]:
        """See :class:`Codec`."""
        return torch.cat([self.normalised(mean) for mean, _ in self._posteriors(pixels)]).float()

    @torch.no_grad()
    def decode(self, x: Float[Tensor, "n c s s"]) -> Pixels:
        """See :class:`Codec`."""
        rows = [self._decoded(self.restored(row[None].to(self.vae.dtype))) for row in x]
        return _to_pixels(torch.cat(rows).float().cpu())

    @torch.no_grad()
    def training_inputs(self, pixels: Pixels, flips: bool = True) -> Float[Tensor, "n parts c s s"]:
        """Mean and standard deviation of the posterior of each image, then (with ``flips``) of its mirror image."""
        pixels = np.asarray(pixels)
        sides = [
            torch.cat([torch.stack([mean, std], dim=1).float().cpu() for mean, std in self._posteriors(images)])
            for images in ([pixels, pixels[:, :, ::-1]] if flips else [pixels])
        ]
        return torch.cat(sides, dim=1)

    def training_input(
        self, kept: Float[Tensor, " *kept"], flip: bool, random: np.random.Generator
    ) -> Float[Tensor, "c s s"]:
        """See :class:`Codec`."""
        mean, deviation = kept[2:] if flip else kept[:2]
        noise = torch.from_numpy(random.standard_normal(tuple(mean.shape), np.float32))
        return self.normalised((mean + deviation * noise)[None])[0]

    def _posteriors(self, pixels: Pixels) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(pixels), IMAGES_A_PASS):
            part = np.array(pixels[start : start + IMAGES_A_PASS])
            x = torch.from_numpy(part).permute(0, 3, 1, 2).float() / 127.5 - 1
            yield self._encoded(x.to(self.vae.device, self.vae.dtype))

    def _encoded(self, images: Float[Tensor, "n 3 h h"]) -> tuple[Tensor, Tensor]:
        found = self.vae.encode(images).latent_dist
        return found.mean, found.std

    def _decoded(self, latents: Float[Tensor, "n c g g"]) -> Float[Tensor, "n 3 h h"]:
        decoded: Tensor = self.vae.decode(latents).sample
        return decoded


class FoldedVaeCodec(VaeCodec):
    """FLUX.2's ``AutoencoderKLFlux2``: 2×2 latents folded into channels, normalised by its batch-norm statistics."""

    def factor_of(self, vae: Any) -> int:
        """See :class:`VaeCodec`."""
        return 2 * super().factor_of(vae)

    def channels_of(self, vae: Any) -> int:
        """See :class:`VaeCodec`."""
        return 4 * super().channels_of(vae)

    def normalised(self, latents: Float[Tensor, "n c g g"]) -> Float[Tensor, "n d s s"]:
        """See :class:`VaeCodec`."""
        mean, deviation = self._statistics(latents)
        return (F.pixel_unshuffle(latents, 2) - mean) / deviation

    def restored(self, x: Float[Tensor, "n d s s"]) -> Float[Tensor, "n c g g"]:
        """See :class:`VaeCodec`."""
        mean, deviation = self._statistics(x)
        return F.pixel_shuffle(x * deviation + mean, 2)

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        batch_norm, epsilon = self.vae.bn, self.vae.config.batch_norm_eps
        mean = batch_norm.running_mean.to(like).reshape(-1, 1, 1)
        return mean, (batch_norm.running_var.to(like).reshape(-1, 1, 1) + epsilon).sqrt()


class FrameVaeCodec(VaeCodec):
    """Qwen-Image's ``AutoencoderKLQwenImage``: a video VAE, given one frame, with a mean and a scale a channel."""

    def factor_of(self, vae: Any) -> int:
        """See :class:`VaeCodec`."""
        return int(2 ** len(vae.config.temperal_downsample))

    def channels_of(self, vae: Any) -> int:
        """See :class:`VaeCodec`."""
        return int(vae.config.z_dim)

    def normalised(self, latents: Float[Tensor, "n c g g"]) -> Float[Tensor, "n d s s"]:
        """See :class:`VaeCodec`."""
        mean, deviation = self._statistics(latents)
        return (latents - mean) / deviation

    def restored(self, x: Float[Tensor, "n d s s"]) -> Float[Tensor, "n c g g"]:
        """See :class:`VaeCodec`."""
        mean, deviation = self._statistics(x)
        return x * deviation + mean

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        config = self.vae.config
        mean, deviation = (torch.tensor(numbers).to(like) for numbers in (config.latents_mean, config.latents_std))
        return mean.reshape(-1, 1, 1), deviation.reshape(-1, 1, 1)

    def _encoded(self, images: Float[Tensor, "n 3 h h"]) -> tuple[Tensor, Tensor]:
        found = self.vae.encode(images[:, :, None]).latent_dist
        return found.mean[:, :, 0], found.std[:, :, 0]

    def _decoded(self, latents: Float[Tensor, "n c g g"]) -> Float[Tensor, "n 3 h h"]:
        decoded: Tensor = self.vae.decode(latents[:, :, None]).sample
        return decoded[:, :, 0]


def _to_pixels(images: Float[Tensor, "n 3 h w"]) -> Pixels:
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def _patch(in_channels: int, sample_size: int | None, resolution: int) -> int:
    patch = math.isqrt(in_channels // 3)
    if in_channels != 3 * patch**2:
        raise DtrakError(
            f"The network has {in_channels} input channels; it needs 3, or 3·p² for folded p×p patches.",
            hint="For Stable Diffusion 1.x set 'model.kind: text-to-image'; greyscale networks are not supported.",
        )
    if patch > 1 and sample_size and sample_size * patch != resolution:
        raise DtrakError(
            f"The network generates {sample_size * patch}×{sample_size * patch} images, but the study's resolution "
            f"is {resolution}.",
            hint=f"Set 'resolution: {sample_size * patch}'.",
        )
    if resolution % patch:
        raise DtrakError(f"Resolution {resolution} is not a multiple of the network's patch size {patch}.")
    return patch
