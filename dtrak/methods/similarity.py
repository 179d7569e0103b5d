"""Similarity baselines that need no diffusion model: pixels, or an image embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dtrak.methods.base import ZHENG, Features, Method, Scores

if TYPE_CHECKING:
    from dtrak.methods.attributor import Attributor
    from dtrak.methods.query import Query
    from dtrak.methods.settings import Setting
    from dtrak.methods.training_side import TrainingSide


@dataclass(frozen=True, kw_only=True)
class PixelMethod(Method):
    """Compares pixels in [−1, 1]."""

    def scores(
        self, study: Attributor, setting: Setting, query: Query, features: Features
    ) -> tuple[Scores, float | None]:
        """See :class:`Method`."""
        from dtrak.methods.embeddings import pixel_vectors
        from dtrak.methods.readout import Readout

        rows = pixel_vectors(np.asarray(study.table.pixels[: study.table.train_size]))
        return Readout(rows).scores(pixel_vectors(query.pixels[None])[0], normaliser=self.normaliser), None


@dataclass(frozen=True, kw_only=True)
class EmbeddingMethod(Method):
    """Compares the study's image embeddings."""

    needs: str = "the image embedding"

    def scores(
        self, study: Attributor, setting: Setting, query: Query, features: Features
    ) -> tuple[Scores, float | None]:
        """See :class:`Method`."""
        from dtrak.methods.embeddings import train_embeddings
        from dtrak.methods.readout import Readout

        rows = train_embeddings(study.folder, lambda: study.embedder)
        return Readout(rows).scores(study.embedder(query.pixels[None])[0], normaliser=self.normaliser), None

    def note(self, study: TrainingSide) -> str:
        """The name of the embedding."""
        return f"The embedding is {study.folder.study.embedding}."


METHODS: tuple[Method, ...] = (
    PixelMethod(
        name="pixel-dot",
        title="Pixel dot",
        formula="τ(x, n) = xᵀ xₙ,  pixels in [−1, 1]",
        source=f"a baseline of {ZHENG}",
    ),
    PixelMethod(
        name="pixel-cos",
        title="Pixel cosine",
        normaliser="cosine",
        formula="τ(x, n) = xᵀ xₙ / (‖x‖ ‖xₙ‖),  pixels in [−1, 1]",
        source=f"a baseline of {ZHENG}",
    ),
    EmbeddingMethod(
        name="embedding-dot",
        title="Embedding dot",
        formula="τ(x, n) = e(x)ᵀ e(xₙ),  e an image embedding",
        source=f"a baseline of {ZHENG}, there with CLIP",
    ),
    EmbeddingMethod(
        name="embedding-cos",
        title="Embedding cosine",
        normaliser="cosine",
        formula="τ(x, n) = e(x)ᵀ e(xₙ) / (‖e(x)‖ ‖e(xₙ)‖),  e an image embedding",
        source=f"a baseline of {ZHENG}, there with CLIP",
    ),
)
