"""Decoding image files and preprocessing them to RGB pixels."""

import io
import warnings

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError


class BadImage(ValueError):
    """An image that cannot be used; the message is the reason."""


def open_image(content: bytes, max_pixels: int = 50_000_000) -> Image.Image:
    """Decode an image to RGB on white, with its EXIF orientation applied.

    Palette, greyscale, 16-bit, CMYK and transparent images are converted; only the first frame of an
    animation is used.

    Raises:
        BadImage: not an image, truncated, or larger than ``max_pixels``.
    """
    if not content:
        raise BadImage("the file is missing or empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content))
            if image.width * image.height > max_pixels:
                raise BadImage(
                    f"{image.width}×{image.height} exceeds {max_pixels:,} pixels (possible decompression bomb)"
                )
            image.load()
        return upright_rgb(image)
    except UnidentifiedImageError as error:
        raise BadImage("not an image, or an unsupported format") from error
    except Image.DecompressionBombError as error:
        raise BadImage("far too many pixels (possible decompression bomb)") from error
    except (OSError, SyntaxError, ValueError, EOFError, TypeError) as error:
        if isinstance(error, BadImage):
            raise
        raise BadImage(f"truncated or damaged ({error})") from error


def upright_rgb(image: Image.Image) -> Image.Image:
    """A decoded image turned upright by its EXIF orientation, as RGB on white."""
    return _to_rgb(ImageOps.exif_transpose(image))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "I;16", "I;16B", "I;16L", "I;16N"):  # 16-bit grey: keep the high byte
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray((values.clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image))
        return Image.fromarray(values.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        return white.convert("RGB")
    return image.convert("RGB")


def to_model_pixels(
    image: Image.Image, resolution: int, crop: int | None = None, resample: str = "lanczos"
) -> UInt8[np.ndarray, "r r 3"]:
    """Scale the shorter side to ``resolution`` and crop the central square.

    An image that already has this size, such as a generated one, is unchanged.

    Args:
        resolution: side of the result, in pixels.
        crop: side of a central square to cut out first, in pixels; smaller images are not cut.
        resample: "lanczos" or "bilinear".
    """
    if image.size != (resolution, resolution):
        if crop is not None and min(image.size) > crop:
            image = _centre(image, crop)
        scale = resolution / min(image.size)
        size = (max(resolution, int(image.width * scale)), max(resolution, int(image.height * scale)))
        image = _centre(image.resize(size, Image.Resampling[resample.upper()]), resolution)
    return np.asarray(image, dtype=np.uint8)


def _centre(image: Image.Image, side: int) -> Image.Image:
    left, top = round((image.width - side) / 2), round((image.height - side) / 2)
    return image.crop((left, top, left + side, top + side))
