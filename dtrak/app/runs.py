"""Runs saved on disk: every generated or uploaded image with its settings.

``runs/<id>/`` holds ``image.png`` (as generated, with its settings as metadata), ``run.json`` and, once computed, the
query's features. The id is a digest of everything that determines the pixels, so the same seed and settings give the
same run, and links remain valid.
"""

import io
import json
import time
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, PngImagePlugin

from dtrak.app.iptc import KEY, xmp
from dtrak.config.environment import environment
from dtrak.data import BadImage
from dtrak.gradients.region import Region
from dtrak.index.faiss_index import QueryFeature
from dtrak.methods.query import Query
from dtrak.models.generation import GenerationSettings
from dtrak.utils.errors import DtrakError
from dtrak.utils.files import atomic_write, digest, read_json, write_bytes, write_json
from dtrak.utils.latest import Latest

if TYPE_CHECKING:
    from dtrak.methods.base import Need

METADATA_KEY = "dtrak"
TITLE = 60  # characters of a prompt in a title
KEPT = 64  # runs in memory
MAX_METADATA = 16_384  # characters; the app never writes more


@dataclass(frozen=True)
class Run:
    """An image that can be attributed.

    Attributes:
        pixels: at the resolution r of the model.
        label: class or prompt, or None.
        settings: that it was generated with; None for an upload.
        created: Unix time in seconds.
        model: fingerprint of the model that generated it, or None.
        region: the part that is asked about; None for all of it.
    """

    id: str
    pixels: UInt8[np.ndarray, "r r 3"]
    label: str | None
    settings: GenerationSettings | None
    created: float
    model: str | None = None
    region: Region | None = None

    @property
    def key(self) -> str:
        """The id, and the part that is asked about: what answers depend on."""
        return self.id if self.region is None else f"{self.id}-{self.region.text}"

    @property
    def title(self) -> str:
        """The seed and the class or prompt, shortened."""
        if self.settings is None:
            return "Uploaded image"
        said = " ".join((self.label or "").split())
        if len(said) > TITLE:
            said = said[: TITLE - 1] + "…"
        return f"Seed {self.settings.seed}" + (f", {said}" if said else "")


class RunStore:
    """The runs of one study, below ``runs/``."""

    def __init__(self, root: Path):
        self.root = root
        self._loaded = Latest[Run](KEPT)  # a run never changes

    def generated_id(self, model: str, settings: GenerationSettings) -> str:
        """The id of the run with these settings and this model."""
        return digest(["generated", model, settings.as_dict()], 12)

    def save_generated(self, model: str, settings: GenerationSettings, pixels: UInt8[np.ndarray, "r r 3"]) -> Run:
        """Save a generated image."""
        run_id = self.generated_id(model, settings)
        content = {"settings": settings.as_dict(), "label": settings.label, "model": model}
        return self._save(run_id, pixels, content, png_bytes(pixels, {**settings.as_dict(), "model": model}))

    def save_upload(self, pixels: UInt8[np.ndarray, "r r 3"], label: str | None) -> Run:
        """Save an uploaded image, preprocessed for the model."""
        run_id = digest(["upload", Query(pixels).id, label], 12)
        return self._save(run_id, pixels, {"settings": None, "label": label}, png_bytes(pixels, None))

    def load(self, run_id: str) -> Run | None:
        """The run with that id, or None."""
        folder = self.root / run_id
        if not run_id.isalnum() or not (folder / "run.json").exists():
            return None
        return self._loaded.of(run_id, lambda: self._read(run_id))

    def _read(self, run_id: str) -> Run:
        folder = self.root / run_id
        content = read_json(folder / "run.json")
        settings = GenerationSettings(**content["settings"]) if content["settings"] else None
        with Image.open(folder / "image.png") as image:
            pixels = np.asarray(image.convert("RGB"))
        return Run(run_id, pixels, content["label"], settings, content["created"], content.get("model"))

    def image_bytes(self, run: Run) -> bytes:
        """The saved PNG, with its settings as metadata."""
        return (self.root / run.id / "image.png").read_bytes()

    def latest(self, count: int) -> list[Run]:
        """The newest runs, newest first."""
        folders = sorted(self.root.glob("*/run.json"), key=lambda p: p.stat().st_mtime, reverse=True)[:count]
        return [run for run in (self.load(path.parent.name) for path in folders) if run]

    def features(self, run: Run, needs: "Iterable[Need]") -> dict[str, QueryFeature]:
        """Those of some needed features that are saved, by their keys."""
        found = {need.key: self._feature(run, need.key, need.identity) for need in needs}
        return {key: feature for key, feature in found.items() if feature is not None}

    def _feature(self, run: Run, key: str, identity: dict[str, Any]) -> QueryFeature | None:
        try:
            with np.load(self._feature_path(run, key)) as stored:
                blocks = stored.get("blocks")
                return QueryFeature(stored["parts"], identity, stored["values"], blocks)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return None

    def save_feature(self, run: Run, key: str, feature: QueryFeature) -> None:
        """Save a feature."""
        arrays = {"parts": feature.parts, "values": feature.values, "blocks": feature.blocks}
        with atomic_write(self._feature_path(run, key)) as file:
            np.savez(file, **{name: array for name, array in arrays.items() if array is not None})  # type: ignore[arg-type]

    def _feature_path(self, run: Run, key: str) -> Path:
        part = "" if run.region is None else f"-{digest(run.region.text)}"
        return self.root / run.id / f"feature-{key}{part}.npz"

    def _save(self, run_id: str, pixels: np.ndarray, content: dict[str, Any], png: bytes) -> Run:
        folder = self.root / run_id
        if not (folder / "run.json").exists():
            write_bytes(folder / "image.png", png)
            write_json(folder / "run.json", {**content, "created": time.time()})
        run = self.load(run_id)
        assert run is not None
        return run


def png_bytes(pixels: UInt8[np.ndarray, "r r 3"], parameters: dict[str, Any] | None) -> bytes:
    """A PNG with ``parameters`` as JSON under "dtrak" and, for other tools, as text under "parameters"."""
    info = PngImagePlugin.PngInfo()
    if parameters is not None:
        info.add_itxt(METADATA_KEY, json.dumps(parameters, sort_keys=True, ensure_ascii=False))
        negative = f"Negative prompt: {parameters['negative']}\n" if parameters.get("negative") else ""
        text = f"Steps: {parameters['steps']}, Sampler: DDIM, CFG scale: {parameters['guidance']}"
        if environment().iptc:
            info.add_itxt(KEY, xmp(parameters))
        info.add_itxt("parameters", f"{parameters['label'] or ''}\n{negative}{text}, Seed: {parameters['seed']}")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def read_settings(content: bytes) -> GenerationSettings:
    """The settings in the metadata of a PNG that the app wrote; the metadata are not trusted.

    Raises:
        DtrakError: there are none, or they are invalid.
    """
    try:
        image = Image.open(io.BytesIO(content))
        text = image.info.get(METADATA_KEY)
        if not isinstance(text, str) or len(text) > MAX_METADATA:
            raise BadImage("it contains none")
        value = json.loads(text)
        settings = GenerationSettings(
            int(value["seed"]),
            int(value["steps"]),
            None if value["label"] is None else str(value["label"]),
            float(value["guidance"]),
            str(value.get("negative", "")),
            float(value.get("lora_scale", 1.0)),
        )
        within = 0 <= settings.guidance <= 20 and 0 <= settings.lora_scale <= 2
        if not (0 <= settings.seed < 2**32 and 1 <= settings.steps <= 1000 and within):
            raise BadImage("they are out of range")
        return settings
    except (BadImage, OSError, SyntaxError, ValueError, OverflowError, KeyError, TypeError) as error:
        raise DtrakError(
            "This file contains no dtrak settings.", hint="Choose a PNG downloaded from the Generate page."
        ) from error
