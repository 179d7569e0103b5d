"""What text-to-image families share: a model made of a diffusers pipeline, and conditioning by its encoders.

A family's file says how prompts become conditioning, how the network is called, and which noise process it was
trained with. Prompts are encoded by the pipeline's own ``encode_prompt``.
"""

import contextlib
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from dtrak.models.base import DiffusionModel
from dtrak.models.codec import VaeCodec
from dtrak.models.families.prompts import Parts, PipelineConditioner
from dtrak.models.families.weights import load_pipe, lora_scaling, state_digest, with_adapter
from dtrak.models.pixel import save_adapter
from dtrak.models.process import NoiseProcess
from dtrak.utils.files import atomic_files, digest

CONDITIONING_VERSION = 1  # raise it whenever a family's ``embed`` changes
SPARE = 1.2  # free memory for text encoders, as a multiple of their weights


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
        load: (path, resolution, adapter, dtype, prompts, guidance input, quantisation, merged adapters) to a model.
        blank: (resolution, path or None) to a network with new weights; with None, the family's usual size.
        lora_modules: layers that the family's LoRA files usually adapt.
        dtype: of frozen weights, as a study of such a LoRA usually has it.
        resolution: of its images, in pixels, where a LoRA does not say.
    """

    load: Callable[
        [Path, int, Path | None, torch.dtype, Sequence[str], float, str | None, Sequence[Path]], DiffusionModel
    ]
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
            guidance: float, quantise: str | None = None, merged: Sequence[Path] = (),
        ) -> DiffusionModel:  # fmt: skip
            pipe = load_pipe(kind, path, kept, {model.part: quantise} if quantise else None)
            network = with_adapter(kind, getattr(pipe, model.part), model.part, adapter, pipe.components, merged)
            return model(pipe, network, resolution, kept, prompts, guidance)

        return cls(load, blank, model.lora_modules, dtype)


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
            self._encoder_digests, [_public(part.config.to_dict()) for part in self.encoders],
            lora_scaling(*self.encoders), self.resolution,
        ])  # fmt: skip

    @cached_property
    def _encoder_digests(self) -> dict[str, str]:
        """Gigabytes that never change: hashed once."""
        return {name: state_digest(part) for name, part in self.pipe.components.items() if _is_encoder(name, part)}

    def _words(self) -> dict[str, Any]:
        return {name: part.get_vocab() for name, part in self.pipe.components.items() if hasattr(part, "get_vocab")}

    def fingerprint(self) -> str:
        """See :class:`DiffusionModel`."""
        network: Any = self.network
        parts = {name: part for name, part in self.pipe.components.items() if isinstance(part, torch.nn.Module)}
        parts[self.part] = network
        states = {name: state_digest(part) for name, part in parts.items() if name not in self._encoder_digests}
        return digest([
            type(self.pipe).__name__, dict(sorted({**states, **self._encoder_digests}.items())),
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
    return _public(dict(part.config))


def _public(config: dict[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in config.items() if not key.startswith("_")}
