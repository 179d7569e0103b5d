"""What text-to-image families share: loading a diffusers pipeline and its LoRA, and conditioning by its encoders.

A family's file says how prompts become conditioning, how the network is called, and which noise process it was
trained with. Prompts are encoded by the pipeline's own ``encode_prompt``, and LoRA files (of peft, diffusers, Kohya's
scripts, ai-toolkit) are read by the pipeline's own ``lora_state_dict``.
"""

import hashlib
import math
import threading
import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from cachetools import LRUCache
from jaxtyping import Float
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection
from transformers.utils.logging import disable_progress_bar

from dtrak.models.adapters import load_peft
from dtrak.models.base import DiffusionModel
from dtrak.models.codec import VaeCodec
from dtrak.models.conditioner import Conditioner
from dtrak.models.pixel import save_adapter
from dtrak.models.process import NoiseProcess
from dtrak.utils.errors import DtrakError
from dtrak.utils.files import atomic_files, digest

LORA_FILE = "pytorch_lora_weights.safetensors"
LOADING_ERRORS = (OSError, ValueError, RuntimeError, KeyError, IndexError, TypeError, SafetensorError)
KEPT = 2 * 2**30  # bytes of prompts' conditioning in memory
CLIP = (CLIPTextModel, CLIPTextModelWithProjection)
Parts = dict[str, Tensor]


@dataclass(frozen=True)
class Blank:
    """A network with new weights, for counting operations.

    Attributes:
        x: one input.
        call: one forward pass.
    """

    network: torch.nn.Module
    x: Tensor
    call: Callable[[], Tensor]


@dataclass(frozen=True)
class Loader:
    """How to load the models of a family.

    Attributes:
        load: (path, resolution, adapter, dtype, prompts, guidance input) to a model.
        blank: (resolution, path or None) to a network with new weights; with None, the family's usual size.
        lora_modules: layers that the family's LoRA files usually adapt.
    """

    load: Callable[[Path, int, Path | None, torch.dtype, Sequence[str], float], DiffusionModel]
    blank: Callable[[int, Path | None], Blank]
    lora_modules: tuple[str, ...] = DiffusionModel.lora_modules

    @classmethod
    def of(cls, kind: Any, model: "type[PipelineModel]", blank: Callable[[int, Path | None], Blank]) -> "Loader":
        """The loader of a family whose pipeline is read as a whole.

        Args:
            kind: the pipeline's class.
        """

        def load(
            path: Path, resolution: int, adapter: Path | None, dtype: torch.dtype, prompts: Sequence[str],
            guidance: float,
        ) -> DiffusionModel:  # fmt: skip
            pipe = load_pipe(kind, path, dtype)
            network = with_adapter(kind, getattr(pipe, model.part), model.part, adapter, pipe.components)
            return model(pipe, network, resolution, dtype, prompts, guidance)

        return cls(load, blank, model.lora_modules)


class PipelineConditioner(Conditioner):
    """Conditioning of several parts, such as token and pooled embeddings, kept as one tensor per prompt.

    Args:
        embed: a prompt's parts, without a batch axis.
        embed_free: the same for what guidance steers away from.
        encoders: the modules that it uses.
        dtype: type of the conditioning.
        prompts: suggested prompts.
    """

    takes_text = True

    def __init__(
        self,
        embed: Callable[[str], Parts],
        embed_free: Callable[[str], Parts],
        encoders: Sequence[torch.nn.Module],
        dtype: torch.dtype,
        prompts: Sequence[str] = (),
    ):
        self._encoders, self.dtype, self.names = encoders, dtype, list(prompts)
        self._device: torch.device | str = "cpu"
        self._shapes: dict[str, torch.Size] = {}
        self._embed = {False: embed, True: embed_free}
        self._lock = threading.Lock()
        self._kept: LRUCache[tuple[bool, str], Tensor] = LRUCache(KEPT, lambda packed: packed.nbytes)

    def to(self, device: torch.device | str) -> None:
        """See :class:`Conditioner`."""
        for encoder in self._encoders:
            encoder.to(device)
        self._device = device
        self._kept.clear()

    def condition(self, names: Sequence[str | None]) -> Float[Tensor, "n numbers"]:
        """See :class:`Conditioner`; None is the empty prompt."""
        return torch.stack([self._packed(name or "") for name in names]).to(self._device)

    def free_condition(self, count: int, negative: str = "") -> Float[Tensor, "n numbers"]:
        """See :class:`Conditioner`."""
        return self._packed(negative, free=True).to(self._device).expand(count, -1)

    def told(self, condition: Tensor | None) -> dict[str, Tensor | None]:
        """The parts of a conditioning, by name."""
        assert condition is not None
        if not self._shapes:
            self._packed("")
        sizes = [math.prod(shape) for shape in self._shapes.values()]
        parts = condition.split(sizes, dim=1)
        return {
            name: part.reshape(len(part), *shape)
            for (name, shape), part in zip(self._shapes.items(), parts, strict=True)
        }

    def check_name(self, name: str | None) -> None:
        """See :class:`Conditioner`; any text is a valid prompt."""

    def _packed(self, prompt: str, free: bool = False) -> Float[Tensor, " numbers"]:
        with self._lock:
            if (free, prompt) not in self._kept:
                parts = self._embed[free](prompt)
                self._shapes = {name: part.shape for name, part in parts.items()}
                packed = torch.cat([part.flatten().to("cpu", self.dtype) for part in parts.values()])
                self._kept[free, prompt] = packed  # megabytes a prompt
            return self._kept[free, prompt]


class PipelineModel(DiffusionModel):
    """A diffusers pipeline of one family.

    Args:
        pipe: the pipeline.
        network: its network, with its LoRA.
        dtype: type of the frozen weights.
        prompts: suggested prompts.
        guidance: the guidance scale that a distilled network takes as input; others ignore it.

    Attributes:
        part: name of the network among the pipeline's parts, and its prefix in LoRA files.
        codec_class: the codec of its VAE.
        extra: what else the prediction depends on, for fingerprints.
    """

    part: ClassVar[str] = "transformer"
    codec_class: ClassVar[type[VaeCodec]] = VaeCodec
    extra: tuple[Any, ...] = ()

    def __init__(
        self, pipe: Any, network: Any, resolution: int, dtype: torch.dtype, prompts: Sequence[str] = (),
        guidance: float = 1.0,
    ):  # fmt: skip
        self.pipe = pipe
        self.encoders = [part for name, part in sorted(pipe.components.items()) if _is_encoder(name, part)]
        conditioner = PipelineConditioner(self.embed, self.embed_free, self.encoders, dtype, prompts)
        codec = self.codec_class(pipe.vae, resolution)
        super().__init__(network, codec, conditioner, self.process_of(pipe, codec.shape), resolution)
        self.dtype = dtype

    @abstractmethod
    def embed(self, prompt: str) -> Parts:
        """A prompt's conditioning, without a batch axis; always the same parts in the same order."""

    def embed_free(self, negative: str) -> Parts:
        """The conditioning that guidance steers away from."""
        return self.embed(negative)

    @abstractmethod
    def process_of(self, pipe: Any, shape: tuple[int, int, int]) -> NoiseProcess:
        """The noise process; ``shape`` is that of one latent."""

    def fingerprint(self) -> str:
        """See :class:`DiffusionModel`."""
        network: Any = self.network
        parts = {name: part for name, part in self.pipe.components.items() if isinstance(part, torch.nn.Module)}
        parts[self.part] = network
        words = {n: part.get_vocab() for n, part in self.pipe.components.items() if hasattr(part, "get_vocab")}
        return digest([
            type(self.pipe).__name__, {name: state_digest(part) for name, part in sorted(parts.items())},
            [plain_config(network), plain_config(self.pipe.vae)], lora_scaling(network, *self.encoders), words,
            self.process.schedule.cpu().tolist(), self.resolution, *self.extra,
        ])  # fmt: skip

    def save(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """See :class:`DiffusionModel`; writes only the adapter."""
        network: Any = self.network
        with atomic_files(folder) as scratch:
            save_adapter(network, scratch, dtype)


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


def _is_encoder(name: str, part: Any) -> bool:
    return name.startswith("text_encoder") and isinstance(part, torch.nn.Module)


def plain_config(part: Any) -> dict[str, str]:
    """A part's configuration as text, without private keys."""
    return {key: str(value) for key, value in dict(part.config).items() if not key.startswith("_")}


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
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()


def load_pipe(kind: Any, path: Path, dtype: torch.dtype) -> Any:
    """A pipeline from a directory, its weights from safetensors only, all of them frozen and in evaluation mode.

    Raises:
        DtrakError: it is incomplete or damaged.
    """
    try:
        disable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pipe = kind.from_pretrained(path, torch_dtype=dtype, local_files_only=True, use_safetensors=True)
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


def with_adapter(
    kind: Any, network: Any, part: str, adapter: Path | None, components: Mapping[str, Any] = MappingProxyType({})
) -> torch.nn.Module:
    """The network with a LoRA, whose parameters are the tuned ones, in float32; all weights are tuned without one.

    What a LoRA file holds for CLIP text encoders is added to them, frozen.

    Args:
        kind: the pipeline's class, which knows the formats of LoRA files.
        adapter: a peft adapter's directory, or a LoRA file or a directory that holds one.
        components: the pipeline's parts by name.

    Raises:
        DtrakError: there is no such LoRA, or it was made for another model.
    """
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


def _adapt_encoder(kind: Any, encoder: Any, name: str, state: Parts, alphas: Any, metadata: Any) -> None:
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


def _read_lora(kind: Any, network: Any, part: str, file: Path) -> tuple[Parts, Any, Any]:
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
