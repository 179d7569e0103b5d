"""Features ``φ(x) = P · mean over (t, draw) of ∇_θ f(ε_θ(x_t, t, c))``, for any number of settings at once."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from dtrak.config import FeatureConfig
from dtrak.data import Table
from dtrak.errors import DtrakError
from dtrak.gradients import NoiseSchedule, sample_gradients
from dtrak.models import PREPROCESSING_VERSION, DiffusionModel
from dtrak.noise import NOISE_VERSION
from dtrak.projection import PROJECTION_VERSION, Projector, make_projector
from dtrak.threads import one_thread


def identity(model: str, data: str, config: FeatureConfig) -> dict[str, Any]:
    """Everything the numbers of a feature set depend on, by name; its digest is the fingerprint.

    Args:
        model: fingerprint of the model.
        data: fingerprint of the training rows.
    """
    return {
        "model": model,
        "data": data,
        "preprocessing": PREPROCESSING_VERSION,
        "output": config.output,
        "timesteps": config.timestep_list(),
        "noise": {"version": NOISE_VERSION, "seed": config.noise_seed, "draws": config.noise_draws},
        "projection": {
            "version": PROJECTION_VERSION,
            "kind": config.projection,
            "seed": config.projection_seed,
            "dim": config.projection_dim,
        },
        "dtype": config.dtype,
    }


class FeatureExtractor:
    """Computes one or more feature sets of a sample; settings that look at the same noise share its passes.

    Args:
        configs: the feature sets wanted.
        batch_size: (timestep, draw) pairs per forward pass; changes memory and speed only.
    """

    def __init__(self, model: DiffusionModel, configs: Sequence[FeatureConfig], batch_size: int = 16):
        self.model, self.configs, self.batch_size = model, list(configs), batch_size
        dimension = sum(p.numel() for p in model.parameters().values())
        projectors: dict[tuple[str, int, int], Projector] = {}
        self._projectors: list[Projector] = []
        self._groups: dict[NoiseSchedule, list[int]] = {}
        for i, config in enumerate(configs):
            key = (config.projection, config.projection_dim, config.projection_seed)
            if key not in projectors:
                _, k, seed = key
                projectors[key] = make_projector(config.projection, dimension, k, seed, model.device)
            self._projectors.append(projectors[key])
            schedule = NoiseSchedule(
                tuple(config.timestep_list(model.num_timesteps)), config.noise_draws, config.noise_seed
            )
            self._groups.setdefault(schedule, []).append(i)

    def __call__(self, x: Float[Tensor, "c h w"], sample_id: str, label: str | None) -> list[Float[np.ndarray, " k"]]:
        """The features of one encoded image, one vector per config, float32.

        Raises:
            DtrakError: a feature is not finite.
        """
        class_index = self.model.class_index(label)
        result: list[np.ndarray] = [np.empty(0)] * len(self.configs)
        with one_thread():
            for schedule, members in self._groups.items():
                outputs = list(dict.fromkeys(self.configs[i].output for i in members))
                gradients = sample_gradients(self.model, x, sample_id, class_index, schedule, outputs, self.batch_size)
                by_output = dict(zip(outputs, gradients, strict=True))
                for i in members:
                    projected = self._projectors[i](by_output[self.configs[i].output][None])[0]
                    result[i] = projected.cpu().numpy()
                    if not np.isfinite(result[i]).all():
                        raise DtrakError(
                            f"The feature '{self.configs[i].output}' of sample '{sample_id}' is not finite.",
                            hint="The model's weights or this image hold infinities; check both.",
                        )
        return result


def extract_rows(extractor: FeatureExtractor, table: Table, rows: Sequence[int]) -> list[Float[np.ndarray, "rows k"]]:
    """Features of some rows of a table, one matrix per config."""
    latents = extractor.model.encode(table.pixels[list(rows)])
    found = [
        extractor(latent, table.records[row].id, table.records[row].label)
        for latent, row in zip(latents, rows, strict=True)
    ]
    return [np.stack(column) for column in zip(*found, strict=True)]
