"""What text-to-image families share: a model made of a diffusers pipeline, and conditioning by its encoders.

A family's file says how prompts become conditioning, how the network is called, and which noise process it was
trained with. Prompts are encoded by the pipeline's own ``encode_prompt``.
"""

import contextlib
import math
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from dtrak.models.base import DiffusionModel
from dtrak.models.codec import VaeCodec
from dtrak.models.conditioner import Conditioner
from dtrak.models.families.weights import load_pipe, lora_scaling, state_digest, with_adapter
from dtrak.models.pixel import save_adapter
from dtrak.models.process import NoiseProcess
from dtrak.utils.files import atomic_files, digest, has_room, write_bytes
from dtrak.utils.latest import Latest

KEPT = 2 * 2**30  # bytes of prompts' conditioning in memory
CONDITIONING_VERSION = 1  # raise it whenever a family's ``embed`` changes
SPARE = 1.2  # free memory for text encoders, as a multiple of their weights
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
        load: (path, resolution, adapter, dtype, prompts, guidance input, quantisation) to a model.
        blank: (resolution, path or None) to a network with new weights; with None, the family's usual size.
        lora_modules: layers that the family's LoRA files usually adapt.
        dtype: of frozen weights, as a study of such a LoRA usually has it.
        resolution: of its images, in pixels, where a LoRA does not say.
    """

    load: Callable[[Path, int, Path | None, torch.dtype, Sequence[str], float, str | None], DiffusionModel]
    blank: Callable[[int, Path | None], Blank]
    lora_modules: tuple[str, ...] = DiffusionModel.lora_modules
    dtype: str = "float32"
    resolution: int = 1024

    @classmethod
    def of(
        cls, kind: Any, model: "type[PipelineModel]", blank: Callable[[int, Path | None], Blank], dtype: str = "float32"
    ) -> "Loader":
        """The loader of a family whose pipeline is read as a whole.

        Args:
            kind: the pipeline's class.
            dtype: see :attr:`dtype`.
        """

        def load(
            path: Path, resolution: int, adapter: Path | None, kept: torch.dtype, prompts: Sequence[str],
            guidance: float, quantise: str | None = None,
        ) -> DiffusionModel:  # fmt: skip
            pipe = load_pipe(kind, path, kept, {model.part: quantise} if quantise else None)
            network = with_adapter(kind, getattr(pipe, model.part), model.part, adapter, pipe.components)
            return model(pipe, network, resolution, kept, prompts, guidance)

        return cls(load, blank, model.lora_modules, dtype)


class PipelineConditioner(Conditioner):
    """Conditioning of several parts, such as token and pooled embeddings, kept as one tensor per prompt.

    Text encoders are often larger than the rest. They stay on the processor, and are on the device only while they
    encode; what :meth:`prepare` computes is kept on disk, so that a training set's captions are encoded once.

    Args:
        embed: a prompt's parts, without a batch axis.
        embed_free: the same for what guidance steers away from.
        encoding: given whether the network may leave the device, a block in which the encoders are where they run.
        identity: a digest of all that the parts depend on besides the prompt.
        dtype: type of the conditioning.
        prompts: suggested prompts.
    """

    takes_text = True

    def __init__(
        self,
        embed: Callable[[str], Parts],
        embed_free: Callable[[str], Parts],
        encoding: Callable[[bool], AbstractContextManager[None]],
        identity: Callable[[], str],
        dtype: torch.dtype,
        prompts: Sequence[str] = (),
    ):
        self._encoding, self._identity, self.dtype, self.names = encoding, cache(identity), dtype, list(prompts)
        self._device: torch.device | str = "cpu"
        self._folder: Path | None = None
        self._shapes: dict[str, torch.Size] = {}
        self._embed, self._embed_free = embed, embed_free
        self._kept: Latest[Tensor] = Latest(KEPT, lambda packed: packed.nbytes)

    def to(self, device: torch.device | str) -> None:
        """See :class:`Conditioner`."""
        self._device = device

    def keep_in(self, folder: Path) -> None:
        """See :class:`Conditioner`."""
        self._folder = folder

    def prepare(self, names: Sequence[str | None]) -> None:
        """See :class:`Conditioner`; only where they may be kept, and while the disk has room."""
        wanted = [(self._embed, name or "") for name in dict.fromkeys([*names, ""])] + [(self._embed_free, "")]
        missing = [one for one in wanted if (path := self._path(*one)) and not path.is_file()]
        if not missing or not self._has_room():
            return
        with self._encoding(True):
            for embed, prompt in missing:
                path = self._path(embed, prompt)
                if path and self._has_room():
                    write_bytes(path, save(self._encoded(embed, prompt)))

    def _has_room(self) -> bool:
        return self._folder is not None and has_room(self._folder.parent)

    def _path(self, embed: Callable[[str], Parts], prompt: str) -> Path | None:
        if self._folder is None:
            return None
        return self._folder / f"{digest([self._identity(), str(self.dtype), embed.__name__, prompt])}.safetensors"

    def _encoded(self, embed: Callable[[str], Parts], prompt: str) -> Parts:
        return {name: part.to("cpu", self.dtype).contiguous() for name, part in embed(prompt).items()}

    def _read(self, embed: Callable[[str], Parts], prompt: str) -> Parts | None:
        path = self._path(embed, prompt)
        if path is None or not path.is_file():
            return None
        try:
            return load(path.read_bytes())
        except SafetensorError:  # damaged: encode it again
            path.unlink(missing_ok=True)
            return None

    def condition(self, names: Sequence[str | None]) -> Float[Tensor, "n numbers"]:
        """See :class:`Conditioner`; None is the empty prompt."""
        return torch.stack([self._packed(self._embed, name or "") for name in names]).to(self._device)

    def free_condition(self, count: int, negative: str = "") -> Float[Tensor, "n numbers"]:
        """See :class:`Conditioner`."""
        return self._packed(self._embed_free, negative).to(self._device).expand(count, -1)

    def told(self, condition: Tensor | None) -> dict[str, Tensor | None]:
        """The parts of a conditioning, by name."""
        assert condition is not None
        if not self._shapes:
            self._packed(self._embed, "")
        sizes = [math.prod(shape) for shape in self._shapes.values()]
        parts = condition.split(sizes, dim=1)
        return {
            name: part.reshape(len(part), *shape)
            for (name, shape), part in zip(self._shapes.items(), parts, strict=True)
        }

    def check_name(self, name: str | None) -> None:
        """See :class:`Conditioner`; any text is a valid prompt."""

    def _packed(self, embed: Callable[[str], Parts], prompt: str) -> Float[Tensor, " numbers"]:
        def pack() -> Tensor:
            parts = self._read(embed, prompt)
            if parts is None:
                with self._encoding(False):
                    parts = self._encoded(embed, prompt)
            parts = dict(sorted(parts.items()))
            self._shapes = {name: part.shape for name, part in parts.items()}
            return torch.cat([part.flatten() for part in parts.values()])  # megabytes

        return self._kept.of((embed.__name__, prompt), pack)


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
        conditioner = PipelineConditioner(
            self.embed, self.embed_free, self._encoding, self._encoders_identity, dtype, prompts
        )
        codec = self.codec_class(pipe.vae, resolution)
        super().__init__(network, codec, conditioner, self.process_of(pipe, codec.shape), resolution)
        self.dtype = dtype

    @abstractmethod
    def embed(self, prompt: str) -> Parts:
        """A prompt's conditioning, without a batch axis; always the same parts."""

    def embed_free(self, negative: str) -> Parts:
        """The conditioning that guidance steers away from."""
        return self.embed(negative)

    @abstractmethod
    def process_of(self, pipe: Any, shape: tuple[int, int, int]) -> NoiseProcess:
        """The noise process; ``shape`` is that of one latent."""

    @contextlib.contextmanager
    def _encoding(self, alone: bool) -> Iterator[None]:
        device = self.device
        if device.type == "cpu":
            yield
            return
        size = SPARE * sum(p.nbytes for encoder in self.encoders for p in encoder.parameters())
        with contextlib.ExitStack() as back:
            if alone and free_memory(device) < size:  # else another thread may use the network
                back.callback(self.network.to, device)
                self.network.to("cpu")
            for encoder in self.encoders if free_memory(device) >= size else []:  # else they run on the processor
                back.callback(encoder.to, "cpu")
                encoder.to(device)
            yield

    def _encoders_identity(self) -> str:
        return digest([
            CONDITIONING_VERSION, type(self.pipe).__name__, plain_config(self.pipe), *self.extra, self._words(),
            [[state_digest(part), str(part.config)] for part in self.encoders], lora_scaling(*self.encoders),
            self.resolution,
        ])  # fmt: skip

    def _words(self) -> dict[str, Any]:
        return {name: part.get_vocab() for name, part in self.pipe.components.items() if hasattr(part, "get_vocab")}

    def fingerprint(self) -> str:
        """See :class:`DiffusionModel`."""
        network: Any = self.network
        parts = {name: part for name, part in self.pipe.components.items() if isinstance(part, torch.nn.Module)}
        parts[self.part] = network
        return digest([
            type(self.pipe).__name__, {name: state_digest(part) for name, part in sorted(parts.items())},
            [plain_config(network), plain_config(self.pipe.vae)], lora_scaling(network, *self.encoders),
            self._words(), self.process.schedule.cpu().tolist(), self.resolution, *self.extra,
        ])  # fmt: skip

    def save(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """See :class:`DiffusionModel`; writes only the adapter."""
        network: Any = self.network
        with atomic_files(folder) as scratch:
            save_adapter(network, scratch, dtype)


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device; without limit where that cannot be asked."""
    if device.type != "cuda":
        return sys.maxsize
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


def _is_encoder(name: str, part: Any) -> bool:
    return name.startswith("text_encoder") and isinstance(part, torch.nn.Module)


def plain_config(part: Any) -> dict[str, str]:
    """A part's configuration as text, without private keys."""
    return {key: str(value) for key, value in dict(part.config).items() if not key.startswith("_")}
