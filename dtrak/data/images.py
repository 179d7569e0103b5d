"""From the bytes of any image file to the RGB pixels a model was trained on."""

import io
import warnings

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError


class BadImage(ValueError):
    """An image that cannot be used, with the reason in plain words."""


def open_image(content: bytes, max_pixels: int = 50_000_000) -> Image.Image:
    """Decode an image fully, as RGB on white, turned upright by its EXIF orientation.

    Palette, greyscale, 16-bit, CMYK and transparent images are converted; of an animation the
    first frame is taken.

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
                    f"{image.width}×{image.height} is more than {max_pixels:,} pixels (a decompression bomb?)"
                )
            image.load()
        return _to_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        raise BadImage("not an image in a format that can be read") from error
    except Image.DecompressionBombError as error:
        raise BadImage("far too many pixels (a decompression bomb?)") from error
    except (OSError, SyntaxError, ValueError, EOFError, TypeError) as error:
        if isinstance(error, BadImage):
            raise
        raise BadImage(f"truncated or damaged ({error})") from error


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
    """Scale the shorter side to ``resolution`` and crop the centre to a square.

    Args:
        crop: first cut out the central square of this many pixels. An image that has the resolution
            already, such as a generated one, is left alone.
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
