"""The model kind "text-to-image": Stable Diffusion 1.x tuned by LoRA, with ε-prediction on VAE latents.

Features use the conditional branch only. The VAE and the text encoder are frozen.
"""

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin
from peft.tuners.lora import LoraLayer
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils.logging import disable_progress_bar

from dtrak.models.adapters import load_peft
from dtrak.models.base import DiffusionModel
from dtrak.models.codec import VaeCodec
from dtrak.models.conditioner import PromptConditioner
from dtrak.models.pixel import save_adapter
from dtrak.models.process import EpsilonDiffusion
from dtrak.utils.errors import DtrakError
from dtrak.utils.files import atomic_files, digest, read_json

LORA_FILE = "pytorch_lora_weights.safetensors"


class StableDiffusion(DiffusionModel):
    """A latent ε-prediction UNet with its VAE, text encoder and tokenizer.

    Args:
        dtype: type of the frozen weights.
        prompts: suggested prompts.

    Raises:
        DtrakError: the resolution does not suit the VAE, or the network does not predict ε.
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
        super().__init__(unet, VaeCodec(vae, resolution), conditioner, EpsilonDiffusion(scheduler), resolution)
        self.dtype = dtype

    def fingerprint(self) -> str:
        """See :class:`DiffusionModel`."""
        unet: Any = self.network
        vae, tokenizer = self.codec.vae, self.conditioner.tokenizer
        parts: dict[str, torch.nn.Module] = {"unet": unet, "vae": vae, "text_encoder": self.conditioner.text_encoder}
        configs = [
            {k: str(v) for k, v in dict(config).items() if not k.startswith("_")}
            for config in (unet.config, vae.config)
        ]
        scaling = {n: list(m.scaling.values()) for n, m in unet.named_modules() if isinstance(m, LoraLayer)}
        words = [tokenizer.get_vocab(), tokenizer.model_max_length]
        schedule = self.process.schedule.cpu().tolist()
        states = {name: _state_digest(part) for name, part in parts.items()}
        return digest(["text-to-image", states, configs, scaling, words, schedule, self.resolution])

    def save(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """See :class:`DiffusionModel`; writes only the adapter."""
        network: Any = self.network
        with atomic_files(folder) as scratch:
            save_adapter(network, scratch, dtype)


def blank_unet(resolution: int) -> tuple[Any, torch.Tensor, dict[str, torch.Tensor]]:
    """Stable Diffusion 1.x's network with new weights, one input, and its conditioning keywords."""
    side = resolution // 8
    network = UNet2DConditionModel(sample_size=side, cross_attention_dim=768, attention_head_dim=8)
    return network, torch.zeros(1, 4, side, side), {"encoder_hidden_states": torch.zeros(1, 77, 768)}


def _state_digest(module: torch.nn.Module) -> str:
    found = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def load_stable_diffusion(
    path: Path, resolution: int, adapter: Path | None, dtype: torch.dtype, prompts: Sequence[str] = ()
) -> StableDiffusion:
    """Load a directory written by ``save_pretrained`` of a Stable Diffusion 1.x pipeline, and a LoRA.

    Args:
        adapter: a peft adapter's directory, or a LoRA file or directory of diffusers (or of Kohya's
            scripts, as diffusers reads them). Its parameters are then the tuned ones, in float32.
        dtype: type of all frozen weights.
        prompts: suggested prompts.

    Raises:
        DtrakError: there is no such model or LoRA, or it cannot be loaded.
    """
    index = path / "model_index.json"
    kind = read_json(index).get("_class_name") if index.is_file() else None
    if kind != "StableDiffusionPipeline":
        raise DtrakError(
            f"There is no Stable Diffusion 1.x pipeline in {path}" + (f", but a {kind}." if kind else "."),
            hint="Set model.path to a directory written by save_pretrained of a StableDiffusionPipeline (1.x).",
        )
    try:
        options: dict[str, Any] = {"torch_dtype": dtype, "local_files_only": True}
        unet = UNet2DConditionModel.from_pretrained(path / "unet", use_safetensors=True, **options)
        vae = AutoencoderKL.from_pretrained(path / "vae", use_safetensors=True, **options)
        disable_progress_bar()
        text_encoder = CLIPTextModel.from_pretrained(
            path / "text_encoder", dtype=dtype, local_files_only=True, use_safetensors=True
        )
        tokenizer = CLIPTokenizer.from_pretrained(path / "tokenizer", local_files_only=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the pipeline's sampler has keys that DDPMScheduler ignores
            scheduler = DDPMScheduler.from_pretrained(path / "scheduler", local_files_only=True)
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
    for frozen in (unet, vae, text_encoder):
        frozen.requires_grad_(adapter is None and frozen is unet)
    network: torch.nn.Module = unet
    if adapter is not None:
        network = _with_adapter(unet, adapter)
        for name, parameter in network.named_parameters():
            tuned = "lora_" in name
            parameter.requires_grad_(tuned)
            if tuned:
                parameter.data = parameter.data.float()
    model = StableDiffusion(network, scheduler, resolution, vae, text_encoder, tokenizer, dtype, prompts)
    model.network.eval()
    return model


def _with_adapter(unet: Any, adapter: Path) -> torch.nn.Module:
    peft = (adapter / "adapter_config.json").is_file()
    file = adapter / LORA_FILE if adapter.is_dir() else adapter
    if not peft and (not file.is_file() or file.suffix != ".safetensors"):
        raise DtrakError(
            f"There is no LoRA at {adapter}.",
            hint=f"Set model.adapter to a peft directory, a directory with {LORA_FILE}, or a .safetensors file.",
        )
    try:
        if peft:
            return load_peft(unet, adapter)
        state, alphas = StableDiffusionLoraLoaderMixin.lora_state_dict(
            str(file.parent), weight_name=file.name, unet_config=unet.config, local_files_only=True
        )
        if any(name.startswith("text_encoder") for name in state):
            warnings.warn(f"{file} also adapts the text encoder; only its UNet weights are used.", stacklevel=2)
        if not any(name.startswith("unet.") for name in state):
            raise ValueError("it has no weights for the UNet")
        unet.load_lora_adapter(state, network_alphas=alphas or None, prefix="unet", adapter_name="default")
    except (OSError, ValueError, RuntimeError, KeyError, IndexError) as error:
        raise DtrakError(
            f"The LoRA {adapter} does not match the model: {error}", hint="Use a LoRA made for this base model."
        ) from error
    return unet
