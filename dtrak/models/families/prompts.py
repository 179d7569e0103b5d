"""What pipelines' text encoders make of prompts, kept in memory and on disk."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from dtrak.models.conditioner import Conditioner
from dtrak.utils.files import digest, has_room, write_bytes
from dtrak.utils.latest import Latest

KEPT = 2 * 2**30  # bytes of prompts' conditioning in memory
Parts = dict[str, Tensor]


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
