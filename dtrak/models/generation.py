"""The settings of a generated image; a module of its own, as it needs no torch."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class GenerationSettings:
    """The settings of a generated image; with the model they determine every pixel.

    Attributes:
        seed: seed of the initial noise.
        steps: number of denoising steps.
        label: class, or prompt of a text-to-image model; None for unconditional.
        guidance: scale of classifier-free guidance; 1 is none. Ignored by models without an unconditional class.
        negative: negative prompt, for a text-to-image model.
        lora_scale: strength of the adapter.
    """

    seed: int
    steps: int = 50
    label: str | None = None
    guidance: float = 1.0
    negative: str = ""
    lora_scale: float = 1.0

    def as_dict(self) -> dict[str, Any]:
        """As JSON-serialisable data; ``negative`` and ``lora_scale`` are omitted at their defaults."""
        content = asdict(self)
        for name in ("negative", "lora_scale"):
            if content[name] == getattr(GenerationSettings, name):
                del content[name]
        return content
