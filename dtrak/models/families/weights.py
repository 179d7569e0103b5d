"""Reading the weights of a diffusers pipeline and of its LoRA.

LoRA files (of peft, diffusers, Kohya's scripts, ai-toolkit) are read by the pipeline's own ``lora_state_dict``.
"""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection
from transformers.utils.logging import disable_progress_bar

from dtrak.models.adapters import load_peft, merged_into
from dtrak.utils.errors import DtrakError

LORA_FILE = "pytorch_lora_weights.safetensors"
LOADING_ERRORS = (OSError, ValueError, RuntimeError, KeyError, IndexError, TypeError, SafetensorError)
CLIP = (CLIPTextModel, CLIPTextModelWithProjection)


def load_pipe(kind: Any, path: Path, dtype: torch.dtype, quantise: Mapping[str, str] | None = None) -> Any:
    """A pipeline from a directory, its weights from safetensors only, all of them frozen and in evaluation mode.

    Args:
        quantise: how parts are quantised, by their names.

    Raises:
        DtrakError: it is incomplete or damaged, or what quantises is not installed.
    """
    options = {"quantization_config": _quantisation(quantise)} if quantise else {}
    try:
        disable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pipe = kind.from_pretrained(path, torch_dtype=dtype, local_files_only=True, use_safetensors=True, **options)
    except LOADING_ERRORS as error:
        raise DtrakError(
            f"The pipeline in {path} could not be loaded: {error}", hint="Check that the directory is complete."
        ) from error
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
    if dtype == torch.float16:
        pipe.vae.to(torch.float32)  # some overflow in float16
    return pipe


def _quantisation(parts: Mapping[str, str]) -> Any:
    from diffusers.quantizers.pipe_quant_config import PipelineQuantizationConfig
    from diffusers.quantizers.quantization_config import TorchAoConfig

    try:
        from torchao.quantization import Int8WeightOnlyConfig
    except ImportError as error:
        raise DtrakError("model.quantise needs torchao.", hint="pip install torchao") from error
    kinds = {"int8": Int8WeightOnlyConfig}
    mapping: Any = {part: TorchAoConfig(kinds[how]()) for part, how in parts.items()}
    return PipelineQuantizationConfig(quant_mapping=mapping)


def with_adapter(
    kind: Any, network: Any, part: str, adapter: Path | None, components: Mapping[str, Any] = MappingProxyType({}),
    merged: Sequence[Path] = (),
) -> torch.nn.Module:  # fmt: skip
    """The network with a LoRA, whose parameters are the tuned ones, in float32; all weights are tuned without one.

    What a LoRA file holds for CLIP text encoders is added to them, frozen.

    Args:
        kind: the pipeline's class, which knows the formats of LoRA files.
        adapter: a peft adapter's directory, or a LoRA file or a directory that holds one.
        components: the pipeline's parts by name.
        merged: LoRAs that are merged into the network's weights first; what they add to text encoders stays beside
            those, as a LoRA's own does.

    Raises:
        DtrakError: there is no such LoRA, or it was made for another model.
    """
    for one in merged:
        network = merged_into(_adapted(kind, network, part, one, components))
    network.requires_grad_(adapter is None)
    if adapter is None:
        return network
    network = _adapted(kind, network, part, adapter, components)
    for name, parameter in network.named_parameters():
        tuned = "lora_" in name
        parameter.requires_grad_(tuned)
        if tuned:
            parameter.data = parameter.data.float()
    return network.eval()  # new layers come in training mode, with their dropout


def _adapted(kind: Any, network: Any, part: str, adapter: Path, components: Mapping[str, Any]) -> Any:
    peft = (adapter / "adapter_config.json").is_file()
    file = adapter / LORA_FILE if adapter.is_dir() else adapter
    if not peft and (not file.is_file() or file.suffix != ".safetensors"):
        raise DtrakError(
            f"There is no LoRA at {adapter}.",
            hint=f"Set model.adapter to a peft directory, a directory with {LORA_FILE}, or a .safetensors file.",
        )
    try:
        if peft:
            return load_peft(network, adapter)
        state, alphas, metadata = _read_lora(kind, network, part, file)
        for name in sorted({key.split(".")[0] for key in state if key.startswith("text_encoder")}):
            _adapt_encoder(kind, components.get(name), name, state, alphas, metadata)
        wanted = {name for name in state if name.startswith(f"{part}.")}
        if not wanted:
            raise ValueError(f"it has no weights for the {part}")
        network.load_lora_adapter(
            state, network_alphas=alphas, metadata=None if alphas else metadata, prefix=part, adapter_name="default"
        )
        own = sum("lora_" in name for name, _ in network.named_parameters())
        if own != len(wanted):
            raise ValueError(f"{len(wanted)} of its tensors are for the {part}, of which {own} fit")
    except LOADING_ERRORS as error:
        raise DtrakError(
            f"The LoRA {adapter} does not match the model: {error}", hint="Use a LoRA made for this base model."
        ) from error
    return network


def _adapt_encoder(kind: Any, encoder: Any, name: str, state: dict[str, Tensor], alphas: Any, metadata: Any) -> None:
    if encoder is None:
        raise ValueError(f"it adapts a {name}, which the model does not have")
    if not hasattr(kind, "load_lora_into_text_encoder") or not isinstance(encoder, CLIP):
        warnings.warn(f"The LoRA also adapts the {name}; this part is left out.", stacklevel=2)
        return
    kind.load_lora_into_text_encoder(
        state, alphas, encoder, prefix=name, adapter_name="default", metadata=None if alphas else metadata
    )
    encoder.requires_grad_(False)
    encoder.train(False)
    wanted, own = (
        sum("lora_" in key for key in keys)
        for keys in ([k for k in state if k.startswith(f"{name}.")], encoder.state_dict())
    )
    if own != wanted:
        raise ValueError(f"{wanted} of its tensors are for the {name}, of which {own} fit")


def _read_lora(kind: Any, network: Any, part: str, file: Path) -> tuple[dict[str, Tensor], Any, Any]:
    """A LoRA file's tensors by diffusers' names, their alphas, and what its trainer noted (rank, alpha).

    Raises:
        ValueError: it holds what would be left out silently.
    """
    with safe_open(file, "pt") as raw:
        if any("dora_scale" in name for name in raw.keys()):  # noqa: SIM118  # not a dictionary
            raise ValueError("it is a DoRA of Kohya's scripts, which diffusers cannot read")
    given = {"unet_config": network.config} if part == "unet" else {"return_alphas": True}
    found = kind.lora_state_dict(
        str(file.parent), weight_name=file.name, local_files_only=True, use_safetensors=True,
        return_lora_metadata=True, **given,
    )  # fmt: skip
    state, *more = found  # Stable Diffusion 3 has no alphas
    if left := [name for name in state if name.endswith(".alpha")]:
        raise ValueError(f"its alphas, such as {left[0]}, cannot be read")
    return state, (more[0] if len(more) == 2 else None) or None, more[-1] or None


def lora_scaling(network: torch.nn.Module, *encoders: torch.nn.Module) -> dict[str, list[float]]:
    """The strength of each LoRA layer of a network and of its text encoders."""
    layers = dict(network.named_modules())
    for number, encoder in enumerate(encoders):
        layers |= {f"text_encoder {number} {name}": module for name, module in encoder.named_modules()}
    return {name: list(m.scaling.values()) for name, m in layers.items() if isinstance(m, LoraLayer)}


def state_digest(module: torch.nn.Module) -> str:
    """A digest of all weights."""
    found = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        value = value if type(value) in (Tensor, torch.nn.Parameter) else value.dequantize()
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()
