"""What a LoRA file says about itself: rank, adapted layers, and the metadata that trainers write."""

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from dtrak.utils.errors import DtrakError

DOWN = re.compile(r"(lora_A|lora_down|lora\.down|_lora\.down)(\.default)?\.weight$")
FLUX2 = ("Flux2Pipeline", "Flux2KleinPipeline")
BASES = {  # words in trainers' metadata or in tensor names, most specific first → classes of pipelines, likeliest first
    word: kinds
    for kinds, words in (
        (("Flux2KleinPipeline",), ("klein",)),
        (FLUX2, ("flux2", "flux.2", "flux-2", "flux_2", "to_qkv_mlp_proj")),
        (("FluxPipeline",), ("flux1", "flux.1", "flux-1", "flux_1")),
        (("FluxPipeline", *FLUX2), ("flux", "single_transformer_blocks", "double_blocks")),
        (("StableDiffusion3Pipeline",), ("sd3",)),
        (("StableDiffusionXLPipeline",), ("sdxl", "stable-diffusion-xl", "lora_te2")),
        (("QwenImagePipeline",), ("qwen",)),
        (("ZImagePipeline",), ("z-image", "zimage")),
        (("StableDiffusionPipeline",), ("sd_v1", "stable-diffusion-v1")),
    )
    for word in words
}
TRAINED_WORDS = 5


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file.

    Attributes:
        ranks: number of layers by rank.
        families: classes of the pipelines it may be made for, likeliest first; none if unknown.
        resolution: that it was trained at, in pixels; None if it does not say.
        base: name of the base model, as the trainer wrote it.
        words: the most frequent tags of its training captions.
        text_encoder: whether it also adapts a text encoder.
    """

    ranks: dict[int, int]
    families: tuple[str, ...]
    resolution: int | None
    base: str
    words: tuple[str, ...]
    text_encoder: bool

    @property
    def family(self) -> str:
        """The likeliest of them; empty if unknown."""
        return self.families[0] if self.families else ""


def read_lora_file(path: Path) -> LoraFile:
    """Read the header of a safetensors file; no weights are loaded.

    Raises:
        DtrakError: it cannot be read, or holds no LoRA.
    """
    try:
        with safe_open(path, "pt") as file:
            told = file.metadata() or {}
            names = list(file.keys())
            ranks = Counter(file.get_slice(n).get_shape()[0] for n in names if DOWN.search(n))
    except (OSError, SafetensorError) as error:
        raise DtrakError(f"{path} cannot be read: {error}", hint="Give a LoRA as a .safetensors file.") from error
    if not ranks:
        raise DtrakError(f"{path} holds no LoRA.", hint="Give one of peft, diffusers, Kohya's scripts or ai-toolkit.")
    base = told.get("ss_base_model_version") or told.get("modelspec.architecture") or told.get("ss_sd_model_name") or ""
    said = " ".join([base, told.get("ss_sd_model_name", ""), *names[:400]]).lower()
    families = next((kinds for word, kinds in BASES.items() if word in said), ())
    resolution = re.search(r"\d+", told.get("ss_resolution") or told.get("modelspec.resolution") or "")
    return LoraFile(
        dict(ranks), families, int(resolution[0]) if resolution else None, base, _words(told),
        any(name.startswith(("text_encoder", "lora_te")) for name in names),
    )  # fmt: skip


def _words(told: dict[str, str]) -> tuple[str, ...]:
    try:
        folders = json.loads(told.get("ss_tag_frequency", "{}"))
        counted: Counter[str] = Counter()
        for tags in folders.values():
            counted.update({tag.strip(): int(count) for tag, count in tags.items()})
    except (ValueError, AttributeError, TypeError):
        return ()
    return tuple(word for word, _ in counted.most_common(TRAINED_WORDS))
