"""Stable Diffusion 1.x and 2.x: a UNet on VAE latents, conditioned on CLIP's last hidden states.

It predicts ε or v, or the velocity where the pipeline's scheduler is that of flow matching. Features use the
conditional branch only. The VAE and the text encoder are frozen.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils.logging import disable_progress_bar

from dtrak.models.base import DiffusionModel
from dtrak.models.codec import VaeCodec
from dtrak.models.conditioner import PromptConditioner
from dtrak.models.families.base import Blank, Loader, plain_config
from dtrak.models.families.schedulers import load_scheduler, process_of
from dtrak.models.families.weights import lora_scaling, state_digest, with_adapter
from dtrak.models.pixel import save_adapter
from dtrak.utils.errors import DtrakError
from dtrak.utils.files import atomic_files, digest, read_json


class StableDiffusion(DiffusionModel):
    """A latent UNet with its VAE, text encoder and tokenizer.

    Args:
        dtype: type of the frozen weights.
        prompts: suggested prompts.

    Raises:
        DtrakError: the resolution does not suit the VAE, or the noise process is not supported.
    """

    codec: VaeCodec
    conditioner: PromptConditioner

    def __init__(
        self,
        unet: torch.nn.Module,
        scheduler: Any,
        resolution: int,
        vae: Any,  # an AutoencoderKL
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        dtype: torch.dtype = torch.float32,
        prompts: Sequence[str] = (),
    ):
        conditioner = PromptConditioner(text_encoder, tokenizer, dtype, prompts)
        codec = VaeCodec(vae, resolution)
        process = process_of(scheduler, codec.shape[1] * codec.shape[2])
        super().__init__(unet, codec, conditioner, process, resolution)
        self.dtype = dtype

    def fingerprint(self) -> str:
        """See :class:`DiffusionModel`."""
        unet: Any = self.network
        vae, tokenizer = self.codec.vae, self.conditioner.tokenizer
        parts: dict[str, torch.nn.Module] = {"unet": unet, "vae": vae, "text_encoder": self.conditioner.text_encoder}
        configs = [plain_config(part) for part in (unet, vae)]
        scaling = lora_scaling(unet, self.conditioner.text_encoder)
        words = [tokenizer.get_vocab(), tokenizer.model_max_length]
        schedule = self.process.schedule.cpu().tolist()
        states = {name: state_digest(part) for name, part in parts.items()}
        return digest(["text-to-image", states, configs, scaling, words, schedule, self.resolution])

    def save(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """See :class:`DiffusionModel`; writes only the adapter."""
        network: Any = self.network
        with atomic_files(folder) as scratch:
            save_adapter(network, scratch, dtype)


def blank(resolution: int, path: Path | None = None) -> Blank:
    """See :class:`Loader`."""

    def config(part: str) -> dict[str, Any]:
        described = path / part / "config.json" if path else None
        return read_json(described) if described and described.is_file() else {}

    stages = config("vae").get("block_out_channels", (128, 256, 512, 512))
    side = resolution // 2 ** (len(stages) - 1)
    given: Any = config("unet") or {"sample_size": side, "cross_attention_dim": 768, "attention_head_dim": 8}
    network: Any = UNet2DConditionModel.from_config(given)
    words = config("text_encoder").get("max_position_embeddings", 77)
    told = torch.zeros(1, words, network.config.cross_attention_dim)
    x = torch.zeros(1, network.config.in_channels, side, side)
    return Blank(network, x, lambda: network(x, torch.zeros(1), encoder_hidden_states=told).sample)


def load_stable_diffusion(
    path: Path, resolution: int, adapter: Path | None, dtype: torch.dtype, prompts: Sequence[str] = (),
    merged: Sequence[Path] = (),
) -> StableDiffusion:  # fmt: skip
    """Load a directory written by ``save_pretrained`` of a Stable Diffusion 1.x pipeline, and a LoRA.

    Args:
        adapter: a peft adapter's directory, or a LoRA file or directory of diffusers (or of Kohya's
            scripts, as diffusers reads them). Its parameters are then the tuned ones, in float32.
        dtype: type of all frozen weights.
        prompts: suggested prompts.
        merged: LoRAs that are merged into the weights first.

    Raises:
        DtrakError: the model or the LoRA cannot be loaded.
    """
    try:
        options: dict[str, Any] = {"torch_dtype": dtype, "local_files_only": True}
        unet = UNet2DConditionModel.from_pretrained(path / "unet", use_safetensors=True, **options)
        vae = AutoencoderKL.from_pretrained(path / "vae", use_safetensors=True, **options)
        disable_progress_bar()
        text_encoder = CLIPTextModel.from_pretrained(
            path / "text_encoder", dtype=dtype, local_files_only=True, use_safetensors=True
        )
        tokenizer = CLIPTokenizer.from_pretrained(path / "tokenizer", local_files_only=True)
        scheduler = load_scheduler(path / "scheduler")
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise DtrakError(
            f"The pipeline in {path} could not be loaded: {error}", hint="Check that the directory is complete."
        ) from error
    if unet.config.in_channels != vae.config.latent_channels:
        takes, has = unet.config.in_channels, vae.config.latent_channels
        raise DtrakError(
            f"The network in {path} has {takes} input channels, but its VAE has {has}.",
            hint="Inpainting and other variants are not supported.",
        )
    for frozen in (vae, text_encoder):
        frozen.requires_grad_(False)
    components = {"text_encoder": text_encoder}
    network = with_adapter(StableDiffusionLoraLoaderMixin, unet, "unet", adapter, components, merged)
    model = StableDiffusion(network, scheduler, resolution, vae, text_encoder, tokenizer, dtype, prompts)
    model.network.eval()
    return model


def _load(
    path: Path, resolution: int, adapter: Path | None, dtype: torch.dtype, prompts: Sequence[str], guidance: float,
    quantise: str | None = None, merged: Sequence[Path] = (),
) -> StableDiffusion:  # fmt: skip
    if quantise:
        raise DtrakError("Stable Diffusion 1.x and 2.x are not quantised.", hint="Remove model.quantise.")
    return load_stable_diffusion(path, resolution, adapter, dtype, prompts, merged)


LOADER = Loader(_load, blank, resolution=512)
