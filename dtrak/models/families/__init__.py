"""Text-to-image families, one file each; ``model_index.json`` of a pipeline says which one it belongs to.

A new family is a file with a :class:`~dtrak.models.families.base.Loader` and a line in ``FAMILIES``.
"""

from importlib import import_module
from pathlib import Path

from dtrak.models.families.base import Loader
from dtrak.utils.errors import DtrakError
from dtrak.utils.files import read_note

FAMILIES = {
    "StableDiffusionPipeline": ("stable_diffusion", "Stable Diffusion 1.x and 2.x"),
    "StableDiffusionXLPipeline": ("sdxl", "Stable Diffusion XL"),
    "StableDiffusion3Pipeline": ("sd3", "Stable Diffusion 3 and 3.5"),
    "FluxPipeline": ("flux", "FLUX.1"),
    "Flux2Pipeline": ("flux2", "FLUX.2 dev"),
    "Flux2KleinPipeline": ("flux2_klein", "FLUX.2 klein"),
    "QwenImagePipeline": ("qwen_image", "Qwen-Image"),
    "ZImagePipeline": ("z_image", "Z-Image"),
}


def family_of(path: Path | None) -> str:
    """The class name in a pipeline's ``model_index.json``; empty if there is none."""
    found = read_note(path / "model_index.json").get("_class_name", "") if path else ""
    return found if isinstance(found, str) else ""


def loader_of(path: Path | None, default: str = "") -> Loader:
    """The loader of the pipeline in a directory.

    Args:
        default: class name to assume where there is no pipeline.

    Raises:
        DtrakError: there is no pipeline, or its family is not supported.
    """
    kind = family_of(path) or default
    if kind not in FAMILIES:
        supported = "; ".join(f"{title} ({name})" for name, (_, title) in FAMILIES.items())
        raise DtrakError(
            f"There is no supported pipeline in {path}" + (f", but a {kind}." if kind else "."),
            hint=f"Set model.path to a directory that save_pretrained wrote. Supported: {supported}.",
        )
    loader: Loader = import_module(f"{__name__}.{FAMILIES[kind][0]}").LOADER
    return loader
