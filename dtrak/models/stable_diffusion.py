"""Stable Diffusion 1.x as attribution sees it: ε_θ of latents, told a caption.

The network works on the VAE's latents. ``encode`` takes the mode of the VAE's posterior, as features
and evaluation do; training draws from the posterior. Features use the conditional branch alone.
VAE and text encoder are never trained.
"""

import functools
import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from jaxtyping import Float, UInt8
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils.logging import disable_progress_bar

from dtrak.models.base import DiffusionModel
from dtrak.utils.errors import DtrakError
from dtrak.utils.files import digest, read_json

PROMPTS_KEPT = 1024
IMAGES_A_PASS = 8
LORA_FILE = "pytorch_lora_weights.safetensors"


class TextToImageModel(DiffusionModel):
    """A latent ε-prediction UNet with its VAE, text encoder and tokenizer.

    Args:
        prompts: what pictures are drawn of where nobody names a prompt.
    """

    takes_text = True
    preview_every = 10  # a VAE's pass costs more than the step itself

    def __init__(
        self,
        unet: torch.nn.Module,
        scheduler: Any,
        resolution: int,
        vae: Any,  # an AutoencoderKL
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        prompts: Sequence[str] = (),
    ):
        super().__init__(unet, scheduler, resolution)
        self.vae = vae
        self.text_encoder, self.tokenizer = text_encoder.eval(), tokenizer
        self.vae.eval()
        self.prompts, self.clips = list(prompts), False
        self._factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self._scale: float = self.vae.config.scaling_factor
        if resolution % self._factor:
            raise DtrakError(f"Resolution {resolution} is not a multiple of the VAE's factor {self._factor}.")
        self._embedding = functools.lru_cache(PROMPTS_KEPT)(self._embed)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        side = self.resolution // self._factor
        return (self.vae.config.latent_channels, side, side)

    def to(self, device: torch.device | str) -> "TextToImageModel":
        super().to(device)
        self.vae.to(device)
        self.text_encoder.to(device)
        self._embedding.cache_clear()
        return self

    @torch.no_grad()
    def encode(self, pixels: UInt8[np.ndarray, "n h w 3"]) -> Float[Tensor, "n c s s"]:
        return torch.cat([p.mode() * self._scale for p in self._posteriors(pixels)]).float()

    @torch.no_grad()
    def decode(self, x: Float[Tensor, "n c s s"]) -> UInt8[np.ndarray, "n h w 3"]:
        rows = [self.vae.decode(row[None].to(self.vae.dtype) / self._scale).sample for row in x]
        images = torch.cat(rows).float().cpu().clamp(-1, 1)
        return ((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()

    @torch.no_grad()
    def training_inputs(self, pixels: UInt8[np.ndarray, "n h w 3"]) -> Float[Tensor, "n 4 c s s"]:
        """Mean and standard deviation of the VAE's posterior of each image, and of its mirror image."""
        pixels = np.asarray(pixels)
        sides = [
            torch.cat([torch.stack([p.mean, p.std], dim=1).float().cpu() for p in self._posteriors(images)])
            for images in (pixels, pixels[:, :, ::-1])
        ]
        return torch.cat(sides, dim=1)

    def training_input(
        self, kept: Float[Tensor, "4 c s s"], flip: bool, random: np.random.Generator
    ) -> Float[Tensor, "c s s"]:
        mean, deviation = kept[2:] if flip else kept[:2]
        noise = torch.from_numpy(random.standard_normal(tuple(mean.shape), np.float32))
        return (mean + deviation * noise) * self._scale

    def condition(self, names: Sequence[str | None]) -> Float[Tensor, "n tokens d"]:
        """The text encoder's last hidden states; None is the empty prompt."""
        return torch.stack([self._embedding(name or "") for name in names])

    def free_condition(self, count: int, negative: str = "") -> Float[Tensor, "n tokens d"]:
        return self.condition([negative] * count)

    def told(self, condition: Tensor | None) -> dict[str, Tensor | None]:
        return {"encoder_hidden_states": condition}

    @property
    def names(self) -> list[str]:
        return list(self.prompts)

    def check_name(self, name: str | None) -> None:
        """Any text can be a prompt."""

    def fingerprint(self) -> str:
        unet: Any = self.unet
        parts: dict[str, torch.nn.Module] = {"unet": unet, "vae": self.vae, "text_encoder": self.text_encoder}
        configs = [
            {k: str(v) for k, v in dict(config).items() if not k.startswith("_")}
            for config in (unet.config, self.vae.config)
        ]
        scaling = {n: list(m.scaling.values()) for n, m in unet.named_modules() if isinstance(m, LoraLayer)}
        words = [self.tokenizer.get_vocab(), self.tokenizer.model_max_length]
        schedule = self.alphas_cumprod.cpu().tolist()
        states = {name: _state_digest(part) for name, part in parts.items()}
        return digest(["text-to-image", states, configs, scaling, words, schedule, self.resolution])

    def _check_input(self) -> int:
        return 1

    def _posteriors(self, pixels: UInt8[np.ndarray, "n h w 3"]) -> Any:
        for start in range(0, len(pixels), IMAGES_A_PASS):
            part = np.array(pixels[start : start + IMAGES_A_PASS])
            x = torch.from_numpy(part).permute(0, 3, 1, 2).float() / 127.5 - 1
            yield self.vae.encode(x.to(self.device, self.vae.dtype)).latent_dist

    @torch.no_grad()
    def _embed(self, prompt: str) -> Float[Tensor, "tokens d"]:
        tokens = self.tokenizer(
            prompt,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        return self.text_encoder(tokens.input_ids.to(self.device))[0][0].to(self.dtype)


def _state_digest(module: torch.nn.Module) -> str:
    found = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def load_text_to_image(
    path: Path, resolution: int, adapter: Path | None, dtype: torch.dtype, prompts: Sequence[str] = ()
) -> TextToImageModel:
    """Load a directory that ``save_pretrained`` of a Stable Diffusion 1.x pipeline wrote, and a LoRA on it.

    Args:
        adapter: a peft adapter's directory, or a LoRA file or directory of diffusers (or of Kohya's
            scripts, as diffusers reads them). Its parameters, in float32, are then the tuned ones.
        dtype: of all frozen weights.

    Raises:
        DtrakError: nothing loadable is there.
    """
    index = path / "model_index.json"
    kind = read_json(index).get("_class_name") if index.is_file() else None
    if kind != "StableDiffusionPipeline":
        raise DtrakError(
            f"There is no Stable Diffusion 1.x pipeline in {path}" + (f", but a {kind}." if kind else "."),
            hint="model.path takes a directory written by save_pretrained of a StableDiffusionPipeline (1.x).",
        )
    try:
        options: dict[str, Any] = {"torch_dtype": dtype, "local_files_only": True}
        unet = UNet2DConditionModel.from_pretrained(path / "unet", **options)
        vae = AutoencoderKL.from_pretrained(path / "vae", **options)
        disable_progress_bar()
        text_encoder = CLIPTextModel.from_pretrained(path / "text_encoder", dtype=dtype, local_files_only=True)
        tokenizer = CLIPTokenizer.from_pretrained(path / "tokenizer", local_files_only=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the pipeline's own sampler has keys that DDPM passes over
            scheduler = DDPMScheduler.from_pretrained(path / "scheduler", local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise DtrakError(
            f"The pipeline in {path} could not be loaded: {error}", hint="Is the directory whole?"
        ) from error
    if unet.config.in_channels != vae.config.latent_channels:
        takes, has = unet.config.in_channels, vae.config.latent_channels
        raise DtrakError(
            f"The network in {path} takes {takes} channels, its VAE has {has}.",
            hint="Inpainting and other variants cannot be used.",
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
    model = TextToImageModel(network, scheduler, resolution, vae, text_encoder, tokenizer, prompts)
    model.dtype = dtype
    model.unet.eval()
    return model


def _with_adapter(unet: Any, adapter: Path) -> torch.nn.Module:
    peft = (adapter / "adapter_config.json").is_file()
    file = adapter / LORA_FILE if adapter.is_dir() else adapter
    if not peft and (not file.is_file() or file.suffix != ".safetensors"):
        raise DtrakError(
            f"There is no LoRA at {adapter}.",
            hint=f"model.adapter takes a directory of peft, a directory with {LORA_FILE}, or a .safetensors file.",
        )
    try:
        if peft:
            network = PeftModel.from_pretrained(unet, adapter, is_trainable=True)
            network.config = unet.config
            return network
        state, alphas = StableDiffusionLoraLoaderMixin.lora_state_dict(  # type: ignore[misc]
            str(file.parent), weight_name=file.name, unet_config=unet.config, local_files_only=True
        )
        if any(name.startswith("text_encoder") for name in state):
            warnings.warn(f"{file} also changes the text encoder; only its part for the UNet is used.", stacklevel=2)
        if not any(name.startswith("unet.") for name in state):
            raise ValueError("it holds nothing for the UNet")
        unet.load_lora_adapter(state, network_alphas=alphas or None, prefix="unet", adapter_name="default")
    except (OSError, ValueError, RuntimeError, KeyError, IndexError) as error:
        raise DtrakError(
            f"The LoRA {adapter} does not fit the model: {error}", hint="Was it made for this base?"
        ) from error
    return unet
