"""The command ``new``: write the YAML of a study from a base model, a LoRA and a folder of images."""

from pathlib import Path
from typing import Annotated

import typer
import yaml

from dtrak.utils.errors import DtrakError
from index_builder.terminal import errors

MOST = 1024


def new(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="The YAML file to write.")],
    base: Annotated[str, typer.Option(prompt="Base model: a directory, or a name on the Hugging Face Hub")],
    lora: Annotated[Path, typer.Option(prompt="LoRA file, or a peft adapter's directory")],
    images: Annotated[Path, typer.Option(prompt="Folder of the training images")],
    resolution: Annotated[int | None, typer.Option(min=16, max=MOST, show_default=False)] = None,
) -> None:
    """Write the study FILE for a LoRA of yours: asks for what is not given, and says what it found."""
    from dtrak.data.captions import captioned_images
    from dtrak.models.families import FAMILIES, family_of, loader_of
    from dtrak.models.lora_file import read_lora_file

    base = str(Path(base).expanduser()) if base.startswith("~") else base
    lora, images = lora.expanduser(), images.expanduser()
    if path.exists():
        raise DtrakError(f"{path} exists already.", hint="Choose another name, or remove it.")
    if path.suffix not in (".yaml", ".yml"):
        raise DtrakError(f"{path} is not a YAML file.", hint="Give it a name that ends in .yaml.")
    count, told = captioned_images(images)
    if not count:
        raise DtrakError(f"There are no images in {images}.", hint="Give the folder that the LoRA was trained on.")
    errors.print(f"{count} images, {told} with a caption (metadata.csv, or a .txt file beside the image).")
    if told < count:
        errors.print("Images without a caption are taken as trained without a prompt.")
    family = family_of(Path(base))
    if lora.is_dir():
        found = None
    else:
        found = read_lora_file(lora)
        ranks = ", ".join(f"rank {rank} in {layers} layers" for rank, layers in sorted(found.ranks.items()))
        errors.print(f"The LoRA has {ranks}. " + (f"Trained on: {found.base}. " if found.base else "")
                     + (f"Frequent words: {', '.join(found.words)}." if found.words else ""), markup=False)  # fmt: skip
        if found.text_encoder:
            errors.print("It also adapts a text encoder: features are gradients of the network's part only.")
        if family and found.families and family not in found.families:
            raise DtrakError(
                f"The LoRA seems to be made for a {found.family}, but the base is a {family}.",
                hint="Give the base model that the LoRA was trained on.",
            )
        family = family or found.family
    if family and family not in FAMILIES:
        raise DtrakError(f"{family} is not supported.", hint=f"Supported: {', '.join(FAMILIES)}.")
    local = Path(base).is_dir()
    usual = loader_of(None, family) if family else None
    side = resolution or min(MOST, (found and found.resolution) or (usual.resolution if usual else MOST))
    place = {"path": str(Path(base).resolve())} if local else {"hub": base}
    adapter = str(lora.resolve())
    dtype = usual.dtype if usual else "float32"
    memory = {} if dtype == "float32" else {"gradient_checkpointing": True}  # large families
    content = {
        "title": path.stem,
        "data": {"kind": "imagefolder", "path": str(images.resolve()), "holdout": 0},
        "resolution": side,
        "model": {"kind": "text-to-image", **place, "adapter": adapter, "dtype": dtype, **memory},
    }
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    print(path)
    errors.print(f"Next: dtrak plan {path} estimates time and disk space; dtrak build {path} computes the index.")
