"""The model kind "pixel": a diffusers ``UNet2DModel`` on pixels, class-conditional or not, with ε-prediction."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel
from peft import PeftModel
from safetensors.torch import load_file, save
from torch import Tensor

from dtrak.models.adapters import load_peft, merged_into
from dtrak.models.base import DiffusionModel
from dtrak.models.codec import PixelCodec
from dtrak.models.conditioner import ClassConditioner
from dtrak.models.diffusion import EpsilonDiffusion
from dtrak.utils.errors import DtrakError
from dtrak.utils.files import atomic_files, digest, read_json

CLASSES_FILE = "classes.json"


class PixelModel(DiffusionModel):
    """An ε-prediction UNet.

    Args:
        scheduler: a diffusers ``DDPMScheduler``.
        classes, null_class: as in :class:`ClassConditioner`.

    Raises:
        DtrakError: the network does not match the resolution, or does not predict ε.
    """

    codec: PixelCodec
    conditioner: ClassConditioner

    def __init__(
        self,
        unet: torch.nn.Module,
        scheduler: Any,
        resolution: int,
        classes: dict[str, int] | None = None,
        null_class: int | None = None,
    ):
        config: Any = unet.config
        codec = PixelCodec(config.in_channels, config.sample_size, resolution)
        conditioner = ClassConditioner(getattr(config, "num_class_embeds", None), classes, null_class)
        super().__init__(unet, codec, conditioner, EpsilonDiffusion(scheduler), resolution)

    def fingerprint(self) -> str:
        """See :class:`DiffusionModel`."""
        unet: Any = self.network
        weights = {name: _tensor_digest(value) for name, value in sorted(unet.state_dict().items())}
        config = {k: v for k, v in dict(unet.config).items() if not k.startswith("_")}
        schedule = _tensor_digest(self.process.schedule)
        return digest([weights, json.loads(json.dumps(config, default=str)), schedule, self.resolution])

    def save(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """See :class:`DiffusionModel`."""
        unet: Any = self.network
        with atomic_files(folder) as scratch:
            if isinstance(unet, PeftModel):
                save_adapter(unet, scratch, dtype)
            else:
                rounded = UNet2DModel.from_config(unet.config)
                rounded.load_state_dict(unet.state_dict())
                torch.nn.Module.to(rounded, dtype).save_pretrained(scratch / "unet", safe_serialization=True)
                self.process.save(scratch)
            if self.conditioner.count:
                content = {"classes": self.conditioner.classes, "null_class": self.conditioner.null_class}
                (scratch / CLASSES_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def save_adapter(network: PeftModel, folder: Path, dtype: torch.dtype) -> None:
    """Write a peft adapter with weights cast to ``dtype``."""
    network.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty template
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(save({name: value.to(dtype) for name, value in load_file(weights).items()}))


def new_unet(architecture: dict[str, Any]) -> UNet2DModel:
    """A freshly initialised network."""
    return UNet2DModel(**architecture)


def new_scheduler() -> DDPMScheduler:
    """The paper's schedule: 1,000 timesteps, linear β from 1e-4 to 0.02, ε-prediction."""
    return DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", prediction_type="epsilon")


def load_model(
    path: Path,
    resolution: int,
    adapter: Path | None = None,
    classes: dict[str, int] | None = None,
    null_class: int | None = None,
    merged: Sequence[Path] = (),
) -> PixelModel:
    """Load a directory written by ``save_pretrained`` of a diffusers pipeline or a UNet2DModel.

    Args:
        path: the pipeline's or the network's directory.
        resolution: width and height of the study's images, in pixels.
        adapter: directory of a LoRA adapter (peft), whose parameters are then the tuned ones.
        classes: label → class index; default from ``classes.json`` of the adapter or the network.
        null_class: as in :class:`ClassConditioner`.
        merged: directories of LoRA adapters that are merged into the weights first.

    Raises:
        DtrakError: there is no such model, or it cannot be loaded.
    """
    folder = path / "unet" if (path / "unet").is_dir() else path
    if not (folder / "config.json").is_file():
        raise DtrakError(
            f"There is no diffusers model in {path}.",
            hint="Set model.path to a directory written by save_pretrained of a diffusers pipeline or a UNet2DModel.",
        )
    kind = read_json(folder / "config.json").get("_class_name")
    if kind != "UNet2DModel":
        raise DtrakError(
            f"{folder} contains a {kind}, but a model of kind 'pixel' must be a UNet2DModel.",
            hint="For Stable Diffusion 1.x set 'model.kind: text-to-image'.",
        )
    try:
        unet = UNet2DModel.from_pretrained(
            folder, use_safetensors=True, torch_dtype=torch.float32, local_files_only=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise DtrakError(
            f"The weights in {folder} could not be loaded: {error}",
            hint="Weights must be in safetensors format; convert with save_pretrained(safe_serialization=True).",
        ) from error
    scheduler = new_scheduler()
    if (path / "scheduler" / "scheduler_config.json").is_file():
        scheduler = DDPMScheduler.from_pretrained(path / "scheduler", local_files_only=True)
    for labels in [*([adapter] if adapter else []), *reversed(merged), path]:
        if classes is None and (labels / CLASSES_FILE).is_file():
            stored = read_json(labels / CLASSES_FILE)
            classes, null_class = stored["classes"], stored["null_class"]
    network: torch.nn.Module = unet
    for part in merged:
        network = merged_into(load_peft(network, part))
    network.requires_grad_(True)
    if adapter:
        network = load_peft(network, adapter)
    model = PixelModel(network, scheduler, resolution, classes, null_class)
    model.network.eval()
    return model


def _tensor_digest(tensor: Tensor) -> str:
    return digest([str(tensor.dtype), list(tensor.shape), tensor.detach().cpu().contiguous().numpy().tobytes().hex()])
