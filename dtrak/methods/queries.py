"""Creating queries from an image file, a seed, or a folder of images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dtrak.data import BadImage, model_pixels, open_image
from dtrak.methods.attributor import Attributor
from dtrak.methods.query import Query
from dtrak.methods.settings import Setting
from dtrak.models.generation import GenerationSettings
from dtrak.models.sampling import generate
from dtrak.utils.errors import DtrakError
from dtrak.utils.files import atomic_write, sha256_file

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"}


def query_from_bytes(attributor: Attributor, content: bytes, label: str | None) -> Query:
    """A query from an image file's bytes.

    Args:
        label: class or prompt to condition on; None for unconditional.

    Raises:
        BadImage: the image cannot be used.
        DtrakError: the model has no such class.
    """
    study = attributor.folder.study
    attributor.model.conditioner.check_name(label)
    return Query(model_pixels(study, open_image(content, study.data.max_pixels)), label)


def query_from_file(attributor: Attributor, path: Path, label: str | None) -> tuple[Query, dict[str, Any]]:
    """A query from an image file, and its description for exports.

    Raises:
        DtrakError: the image cannot be used, or the model has no such class.
    """
    try:
        query = query_from_bytes(attributor, path.read_bytes(), label)
    except BadImage as reason:
        raise DtrakError(f"Cannot use {path}: {reason}.", hint="Use a PNG, JPEG or WebP image.") from None
    except OSError as reason:
        raise DtrakError(f"Cannot read {path}: {reason.strerror}.", hint="Check the path.") from None
    return query, {"image": path.name, "sha256": sha256_file(path), "label": label}


def generate_query(attributor: Attributor, settings: GenerationSettings) -> Query:
    """Generate an image and return it as a query.

    Raises:
        DtrakError: the model has no such class.
    """
    attributor.model.conditioner.check_name(settings.label)
    return Query(generate(attributor.model, [settings])[0], settings.label, settings)


def write_scores(
    attributor: Attributor,
    queries: Path,
    out: Path,
    setting: Setting,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[tuple[str, str]]:
    """Score all training samples for every image in a folder; returns the skipped files with reasons.

    Writes ``scores`` [Q, N] float32, ``train_ids`` [N] and ``query_files`` [Q] to an ``.npz`` file.

    Args:
        queries: the folder of images.
        out: the file to write.
        report: called with (files done, total files).

    Raises:
        DtrakError: there is no usable image, or features that the method needs are missing.
    """
    files = sorted(p for p in queries.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    rows, used, refused = [], [], []
    for done, path in enumerate(files):
        report(done, len(files))
        name = path.relative_to(queries).as_posix()
        try:
            query = query_from_bytes(attributor, path.read_bytes(), None)
        except (BadImage, OSError) as reason:  # also links that lead nowhere, and folders named like images
            refused.append((name, str(getattr(reason, "strerror", None) or reason)))
            continue
        features = attributor.features(query, [setting], by_block=False)
        rows.append(attributor.scores(setting, query, features)[0])
        used.append(name)
    report(len(files), len(files))
    if not rows:
        raise DtrakError(f"There is no usable image in {queries}.", hint="Use a folder of PNG, JPEG or WebP files.")
    with atomic_write(out) as file:
        np.savez(
            file,
            scores=np.stack(rows).astype(np.float32),
            train_ids=np.array(attributor.table.train_ids),
            query_files=np.array(used),
        )
    return refused
