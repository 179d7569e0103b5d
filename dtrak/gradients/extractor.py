"""Features ``φ(x) = P · mean over (t, draw) of ∇_θ f(ε_θ(x_t, t, c))``, for several feature sets at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from dtrak.config import FeatureConfig
from dtrak.data import Table
from dtrak.execution.memory import with_smaller_batches
from dtrak.execution.threads import task_threads
from dtrak.gradients.passes import NoiseSchedule, gradient_chunks
from dtrak.gradients.projection import PROJECTION_VERSION, Projector, make_projector
from dtrak.gradients.region import Region
from dtrak.models.base import PREPROCESSING_VERSION, DiffusionModel
from dtrak.utils.errors import DtrakError
from dtrak.utils.noise import NOISE_VERSION

FEATURE_VERSION = 4  # part of every fingerprint: raise it whenever what a shard holds changes


def identity(model: str, data: str, config: FeatureConfig) -> dict[str, Any]:
    """Everything that the values of a feature set depend on, by name; its digest is the fingerprint.

    Args:
        model: fingerprint of the model.
        data: fingerprint of the rows (:func:`dtrak.methods.query.data_fingerprint`).
    """
    return {
        "version": FEATURE_VERSION,
        "model": model,
        "data": data,
        "split": config.split,
        "preprocessing": PREPROCESSING_VERSION,
        "output": config.output,
        "timesteps": config.timestep_list(),
        "noise": {
            "version": NOISE_VERSION,
            "seed": config.noise_seed,
            "draws": config.noise_draws,
            "first": config.first_draw,
        },
        "projection": {
            "version": PROJECTION_VERSION,
            "kind": config.projection,
            "seed": config.projection_seed,
            "dim": config.projection_dim,
        },
        "parts": len(config.pairs()) if config.apart else 1,
        "dtype": config.dtype,
    }


@dataclass(frozen=True)
class SampleFeature:
    """The feature of one sample for one feature set.

    Attributes:
        parts: one row per (timestep, draw) pair if ``apart``, else a single row, their mean.
        values: mean((ε_θ − ε)²) and mean(ε_θ²) of each pair.
        blocks: the mean split by block of the network, if requested; the rows sum to the mean.
    """

    parts: Float[np.ndarray, "*rows parts k"]
    values: Float[np.ndarray, "*rows pairs 2"]
    blocks: Float[np.ndarray, "blocks k"] | None = None

    @cached_property
    def vector(self) -> Float[np.ndarray, " k"]:
        """φ(x): the mean of the parts, float32."""
        return self.parts.mean(0, dtype=np.float64).astype(np.float32)


def network_blocks(names: Sequence[str]) -> dict[str, list[int]]:
    """Indices of the parameters of each block of a UNet, in the order of the network.

    Args:
        names: names of the parameters.
    """
    found: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        words = name.removeprefix("base_model.model.").split(".")
        block = words[0] if words[0] not in ("down_blocks", "up_blocks") else f"{words[0][:-1]} {words[1]}"
        found.setdefault(block.replace("_", " "), []).append(number)
    order = ("conv in", "time", "class", "down", "mid", "up", "conv")

    def place(block: str) -> int:
        return next((i for i, start in enumerate(order) if block.startswith(start)), len(order))

    return dict(sorted(found.items(), key=lambda item: place(item[0])))


class FeatureExtractor:
    """Computes one or more feature sets of a sample; sets with the same noise schedule share forward passes.

    Args:
        configs: the feature sets, all of this model.
        batch_size: (timestep, draw) pairs per forward pass; affects only memory and speed.
        by_block: also split each mean by block of the network.
        timesteps: use these instead of the configs' timesteps (for a sampling trajectory).
        beside: the feature sets that other calls compute for the same build. If one of them needs its pairs apart, sums
            over the same pairs are rounded as if it were computed here, so a resumed build has the same bytes.
    """

    def __init__(
        self,
        model: DiffusionModel,
        configs: Sequence[FeatureConfig],
        batch_size: int = 16,
        by_block: bool = False,
        timesteps: Sequence[float] | None = None,
        beside: Sequence[FeatureConfig] = (),
    ):
        def schedule_of(config: FeatureConfig) -> NoiseSchedule:
            seen = tuple(timesteps or config.timestep_list(model.num_timesteps))
            return NoiseSchedule(seen, config.noise_draws, config.noise_seed, config.first_draw)

        self.model, self.configs, self.batch_size = model, list(configs), batch_size
        sizes = [p.numel() for p in model.parameters().values()]
        self._starts = np.cumsum([0, *sizes]).tolist()
        self._blocks = list(network_blocks(list(model.parameters())).values()) if by_block else []
        self._block_of = {number: block for block, numbers in enumerate(self._blocks) for number in numbers}
        projectors: dict[tuple[str, int, int], Projector] = {}
        self._projectors: list[Projector] = []
        self._groups: dict[tuple[NoiseSchedule, bool], list[int]] = {}
        apart = {schedule_of(config) for config in (*configs, *beside) if config.apart}
        for i, config in enumerate(configs):
            key = (config.projection, config.projection_dim, config.projection_seed)
            if key not in projectors:
                _, k, seed = key
                projectors[key] = make_projector(config.projection, sum(sizes), k, seed, model.device)
            self._projectors.append(projectors[key])
            schedule = schedule_of(config)
            self._groups.setdefault((schedule, schedule in apart), []).append(i)  # one pass is enough for both kinds

    def __call__(
        self, x: Float[Tensor, "*pairs c h w"], sample_id: str, label: str | None, region: Region | None = None
    ) -> list[SampleFeature]:
        """The features of one encoded image, one per config, float32.

        Args:
            x: the encoded image, or one for each (timestep, draw) pair.
            sample_id: keys the noise.
            label: label or prompt to condition on; None for unconditional.
            region: the part of the image that the output functions look at; None for all of it.

        Raises:
            DtrakError: a feature is not finite, or memory is insufficient for a batch of one.
        """
        result: dict[int, SampleFeature] = {}
        told = self.model.condition([label])
        mask = None if region is None else region.mask(x.shape[-2:]).to(self.model.device)
        with task_threads():
            for (schedule, apart), members in self._groups.items():

                def work(
                    size: int, schedule: NoiseSchedule = schedule, apart: bool = apart, members: list[int] = members
                ) -> dict[int, SampleFeature]:
                    return self._group(x, sample_id, told, mask, schedule, apart, members, size)

                found, self.batch_size = with_smaller_batches(work, self.batch_size)
                result |= found
        for i, feature in result.items():
            if not np.isfinite(feature.parts).all():
                raise DtrakError(
                    f"The feature '{self.configs[i].output}' of sample '{sample_id}' is not finite.",
                    hint="Check the model's weights and this image for infinities and NaNs.",
                )
        return [result[i] for i in range(len(self.configs))]

    def _group(
        self,
        x: Tensor,
        sample_id: str,
        condition: Tensor | None,
        mask: Tensor | None,
        schedule: NoiseSchedule,
        apart: bool,
        members: list[int],
        batch_size: int,
    ) -> dict[int, SampleFeature]:
        by_output: dict[str, list[int]] = {}
        for i in members:
            by_output.setdefault(self.configs[i].output, []).append(i)
        count, like = len(schedule.pairs), next(iter(self.model.parameters().values()))
        parts = {i: self._projectors[i].begin(count if self.configs[i].apart else 1, like) for i in members}
        blocks = {i: self._projectors[i].begin(len(self._blocks), like) for i in members if self._blocks}
        values = []
        outputs = list(by_output)
        for chunk in gradient_chunks(self.model, x, sample_id, condition, schedule, outputs, batch_size, apart, mask):
            values.append(chunk.values)
            rows = slice(chunk.pairs.start, chunk.pairs.stop)
            for number, (start, gradients) in enumerate(zip(self._starts[:-1], chunk.gradients, strict=True)):
                for gradient, of_output in zip(gradients, by_output.values(), strict=True):
                    apart_only = not blocks and all(self.configs[i].apart for i in of_output)
                    summed = gradient if apart_only or len(gradient) == 1 else gradient.sum(0, keepdim=True)
                    for i in of_output:
                        add = self._projectors[i].add
                        if self.configs[i].apart:
                            add(parts[i][rows], gradient, start)
                        else:
                            add(parts[i], summed, start)
                        if blocks:
                            block = self._block_of[number]
                            add(blocks[i][block : block + 1], summed, start)
        seen = torch.cat(values).cpu().numpy()
        result = {}
        for i in members:
            found = self._projectors[i].result(parts[i])
            mean = (self._projectors[i].result(blocks[i]) / count).cpu().numpy() if blocks else None
            result[i] = SampleFeature((found if self.configs[i].apart else found / count).cpu().numpy(), seen, mean)
        return result


def mean_gradient(
    model: DiffusionModel,
    pixels: UInt8[np.ndarray, "r r 3"],
    sample_id: str,
    label: str | None,
    config: FeatureConfig,
    batch_size: int = 16,
) -> dict[str, Tensor]:
    """The unprojected feature of one image: the mean gradient of each tuned parameter, by name."""
    schedule = NoiseSchedule(
        tuple(config.timestep_list(model.num_timesteps)), config.noise_draws, config.noise_seed, config.first_draw
    )
    x, told = model.encode(pixels[None])[0], model.condition([label])
    total: dict[str, Tensor] = {}
    with task_threads():
        for chunk in gradient_chunks(model, x, sample_id, told, schedule, [config.output], batch_size):
            for name, (gradient,) in zip(model.parameters(), chunk.gradients, strict=True):
                part = gradient.sum(0) / len(schedule.pairs)
                total[name] = total[name] + part if name in total else part
    return total


def extract_rows(extractor: FeatureExtractor, table: Table, rows: Sequence[int]) -> list[SampleFeature]:
    """The features of some rows of a table, one per config, stacked along a new first axis."""
    extractor.model.conditioner.prepare([table.names[row] for row in rows])
    latents = extractor.model.encode(table.pixels[list(rows)])
    found = [
        extractor(latent, table.records[row].id, table.names[row]) for latent, row in zip(latents, rows, strict=True)
    ]
    return [
        SampleFeature(np.stack([f.parts for f in column]), np.stack([f.values for f in column]))
        for column in zip(*found, strict=True)
    ]
