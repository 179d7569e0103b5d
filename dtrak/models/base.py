"""A diffusion model as attribution sees it: predicted noise as a function of its parameters.

Wraps a diffusers ``UNet2DModel`` that predicts ε, its noise schedule, and what lies between an
8-bit image and the network's input: scaling to [−1, 1] and, when the network takes ``3·p²``
channels, folding p×p pixels into channels (an orthonormal reordering, so that noise stays noise).
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DModel
from jaxtyping import Float, Int, Shaped, UInt8
from peft import PeftModel
from safetensors.torch import load_file, save
from torch import Tensor

from dtrak.utils.errors import DtrakError
from dtrak.utils.files import atomic_files, digest, read_json
from dtrak.utils.noise import keyed_generator

PREPROCESSING_VERSION = 1  # part of every fingerprint: raise it whenever ``encode`` changes
CLASSES_FILE = "classes.json"


class DiffusionModel:
    """An ε-prediction UNet with its schedule.

    Attributes:
        unet: the network; its parameters with ``requires_grad`` are those attributed over.
        resolution: width and height of the images it draws, in pixels.
        classes: label → class index; empty for a model without classes.
        null_class: the class index that stands for "any class", where the model has one.
        dtype: of the network's frozen weights.
        clips: whether the sampler clips predictions of x₀ to [−1, 1].
        takes_text: whether any text is a name it can be told.
    """

    takes_text = False
    preview_every = 1  # denoising steps

    def __init__(
        self,
        unet: torch.nn.Module,
        scheduler: Any,  # a diffusers DDPMScheduler
        resolution: int,
        classes: dict[str, int] | None = None,
        null_class: int | None = None,
    ):
        config: Any = unet.config
        self.unet, self.scheduler, self.resolution = unet, scheduler, resolution
        self.num_class_embeds: int | None = getattr(config, "num_class_embeds", None)
        self.classes = dict(classes or {}) if self.num_class_embeds else {}
        self.null_class = null_class if self.num_class_embeds else None
        self.patch = self._check_input()
        self.dtype = next(unet.parameters()).dtype
        self.clips = True
        self.alphas_cumprod: Tensor = scheduler.alphas_cumprod.float()
        self.num_timesteps: int = scheduler.config.num_train_timesteps
        if scheduler.config.prediction_type != "epsilon":
            raise DtrakError(
                f"The model predicts '{scheduler.config.prediction_type}'; attribution needs ε-prediction.",
                hint="Use a model whose scheduler has prediction_type 'epsilon'.",
            )

    def _check_input(self) -> int:
        config: Any = self.unet.config
        return _patch(config.in_channels, config.sample_size, self.resolution)

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape of the network's input for one image."""
        side = self.resolution // self.patch
        return (3 * self.patch**2, side, side)

    def to(self, device: torch.device | str) -> "DiffusionModel":
        """Move the network; returns self."""
        self.unet.to(device)
        self.alphas_cumprod = self.alphas_cumprod.to(device)
        return self

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The tuned parameters by name, in the order of the projection's input."""
        return {name: p for name, p in self.unet.named_parameters() if p.requires_grad}

    def encode(self, pixels: UInt8[np.ndarray, "n h w 3"]) -> Float[Tensor, "n c s s"]:
        """Images to network inputs."""
        x = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
        return F.pixel_unshuffle(x, self.patch).contiguous()

    def decode(self, x: Float[Tensor, "n c s s"]) -> UInt8[np.ndarray, "n h w 3"]:
        """Network outputs to 8-bit images; the inverse of ``encode`` up to clipping and rounding."""
        images = F.pixel_shuffle(x.float().cpu(), self.patch).clamp(-1, 1)
        return ((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()

    def flip(self, x: Float[Tensor, "c s s"]) -> Float[Tensor, "c s s"]:
        """Mirror one encoded image left to right."""
        return F.pixel_unshuffle(F.pixel_shuffle(x, self.patch).flip(-1), self.patch)

    def class_index(self, label: str | None) -> int | None:
        """The class to condition on for ``label``; None for a model without classes.

        Raises:
            DtrakError: the model has classes, none is "any", and ``label`` is not among them.
        """
        if not self.num_class_embeds:
            return None
        index = self.null_class if label is None else self.classes.get(label, self.null_class)
        if index is None:
            raise DtrakError(
                f"The model has no class for the label {label!r}.",
                hint=f"It knows: {', '.join(self.classes) or 'none'}. Map labels under model.classes in the YAML file.",
            )
        return index

    def condition(self, names: Sequence[str | None]) -> Shaped[Tensor, "n *shape"] | None:
        """What the network is told for each name: class indices here; None for a model that is told nothing."""
        indices = [self.class_index(name) for name in names]
        return torch.tensor(indices, device=self.device) if self.num_class_embeds else None

    def free_condition(self, count: int, negative: str = "") -> Shaped[Tensor, "n *shape"] | None:
        """What guidance leads away from, or None for a model that cannot be told "anything"."""
        return None if self.null_class is None else self.condition([None] * count)

    def told(self, condition: Tensor | None) -> dict[str, Tensor | None]:
        """The keyword arguments that carry a condition to the network."""
        return {"class_labels": condition}

    @property
    def names(self) -> list[str]:
        """Names that the model can be told; empty for one that is told nothing, or anything."""
        return list(self.classes)

    def check_name(self, name: str | None) -> None:
        """Refuse a name that the model does not know.

        Raises:
            DtrakError: it says which there are.
        """
        if name is not None and name not in self.classes:
            known = ", ".join(self.classes) or "none; this model has no classes"
            raise DtrakError(f"The model has no class '{name}'.", hint=f"Classes: {known}.")

    def training_inputs(self, pixels: UInt8[np.ndarray, "n h w 3"]) -> Float[Tensor, "n *kept"]:
        """What :meth:`training_input` draws from, kept for all images while a model is trained."""
        return self.encode(pixels)

    def training_input(
        self, kept: Float[Tensor, " *kept"], flip: bool, random: np.random.Generator
    ) -> Float[Tensor, "c s s"]:
        """One image as one step of training sees it.

        Args:
            random: for what is random about it, beside the flip.
        """
        return self.flip(kept) if flip else kept

    def add_noise(self, x: Tensor, noise: Tensor, timesteps: Int[Tensor, " n"]) -> Tensor:
        """x_t = √ᾱ_t x + √(1−ᾱ_t) ε."""
        alpha = self.alphas_cumprod[timesteps].reshape(-1, 1, 1, 1)
        return alpha.sqrt() * x + (1 - alpha).sqrt() * noise

    def predict(
        self, x_t: Float[Tensor, "n c s s"], timesteps: Int[Tensor, " n"], condition: Tensor | None
    ) -> Float[Tensor, "n c s s"]:
        """ε_θ(x_t, t, condition), in float32 whatever the weights' type."""
        x_t = x_t if self.dtype == torch.float32 else x_t.to(self.dtype)
        prediction = self.unet(x_t, timesteps, **self.told(condition)).sample
        return prediction if prediction.dtype == torch.float64 else prediction.float()

    def fingerprint(self) -> str:
        """A digest of everything the prediction depends on: weights, architecture, schedule."""
        unet: Any = self.unet
        weights = {name: _tensor_digest(value) for name, value in sorted(unet.state_dict().items())}
        config = {k: v for k, v in dict(unet.config).items() if not k.startswith("_")}
        schedule = _tensor_digest(self.alphas_cumprod)
        return digest([weights, json.loads(json.dumps(config, default=str)), schedule, self.resolution])


def underflow_scale(model: DiffusionModel, size: int) -> float:
    """What cotangents of means over ``size`` numbers are multiplied by, so that float16 can hold them."""
    return float(size) if model.dtype == torch.float16 else 1.0


def _tensor_digest(tensor: Tensor) -> str:
    return digest([str(tensor.dtype), list(tensor.shape), tensor.detach().cpu().contiguous().numpy().tobytes().hex()])


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


def new_unet(architecture: dict[str, Any]) -> UNet2DModel:
    """A freshly initialised network."""
    return UNet2DModel(**architecture)


def new_scheduler() -> DDPMScheduler:
    """The paper's schedule: 1,000 steps, linear β from 1e-4 to 0.02, ε-prediction."""
    return DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", prediction_type="epsilon")


def load_model(
    path: Path,
    resolution: int,
    adapter: Path | None = None,
    classes: dict[str, int] | None = None,
    null_class: int | None = None,
) -> DiffusionModel:
    """Load what ``save_pretrained`` of a diffusers pipeline or of a UNet2DModel wrote.

    Args:
        path: the pipeline's or the network's directory.
        resolution: of the study's images.
        adapter: a LoRA adapter's directory (peft). Its parameters are then the tuned ones.
        classes: label → class index; default what ``classes.json`` beside the network says.
        null_class: as in :class:`DiffusionModel`.

    Raises:
        DtrakError: nothing loadable is there.
    """
    folder = path / "unet" if (path / "unet").is_dir() else path
    if not (folder / "config.json").is_file():
        raise DtrakError(
            f"There is no diffusers model in {path}.",
            hint="model.path takes a directory written by save_pretrained of a diffusers pipeline or a UNet2DModel.",
        )
    kind = read_json(folder / "config.json").get("_class_name")
    if kind != "UNet2DModel":
        raise DtrakError(
            f"{folder} holds a {kind}; a model of kind 'pixel' is a UNet2DModel.",
            hint="For Stable Diffusion 1.x set 'model.kind: text-to-image'.",
        )
    try:
        unet = UNet2DModel.from_pretrained(
            folder, use_safetensors=True, torch_dtype=torch.float32, local_files_only=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise DtrakError(
            f"The weights in {folder} could not be loaded: {error}",
            hint="They must be safetensors; convert others with save_pretrained(safe_serialization=True).",
        ) from error
    scheduler = new_scheduler()
    if (path / "scheduler" / "scheduler_config.json").is_file():
        scheduler = DDPMScheduler.from_pretrained(path / "scheduler", local_files_only=True)
    for labels in ([adapter] if adapter else []) + [path]:
        if classes is None and (labels / CLASSES_FILE).is_file():
            stored = read_json(labels / CLASSES_FILE)
            classes, null_class = stored["classes"], stored["null_class"]
    network: torch.nn.Module = unet
    if adapter:
        network = PeftModel.from_pretrained(unet, adapter, is_trainable=True)
        network.config = unet.config  # type: ignore[assignment]
    model = DiffusionModel(network, scheduler, resolution, classes, null_class)
    model.unet.eval()
    return model


@torch.no_grad()
def shuffle_weights(model: DiffusionModel) -> DiffusionModel:
    """Shuffle the entries of every weight in place: the same scales, nothing learnt (Adebayo et al., 2018)."""
    for name, parameter in model.unet.named_parameters():
        order = keyed_generator("shuffle", 0, name).permutation(parameter.numel())
        parameter.copy_(parameter.flatten()[torch.from_numpy(order)].reshape(parameter.shape))
    return model


def save_model(model: DiffusionModel, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write the network (or, for LoRA, the adapter alone), its schedule and its classes to ``folder``."""
    unet: Any = model.unet
    with atomic_files(folder) as scratch:
        if isinstance(unet, PeftModel):
            unet.save_pretrained(str(scratch))
            (scratch / "README.md").unlink(missing_ok=True)  # peft's template, all blanks
            weights = scratch / "adapter_model.safetensors"
            weights.write_bytes(save({name: value.to(dtype) for name, value in load_file(weights).items()}))
        else:
            rounded = UNet2DModel.from_config(unet.config)
            rounded.load_state_dict(unet.state_dict())
            torch.nn.Module.to(rounded, dtype).save_pretrained(scratch / "unet", safe_serialization=True)
            model.scheduler.save_pretrained(scratch / "scheduler")
        if model.num_class_embeds:
            content = {"classes": model.classes, "null_class": model.null_class}
            (scratch / CLASSES_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
