"""The configuration of a feature set: an output function, its timesteps and noise, and the projection."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

TIMES = 1000  # number of diffusion timesteps, for all model kinds
LAST = "last"  # name of the study's own model among its checkpoints
RANDOMISED = "randomised"  # name of the negative control: the same network with shuffled weights

Split = Literal["train", "truth", "unrelated"]  # of a feature set: training images, evaluation queries, the null
ProjectionKind = Literal["sparse", "normal", "rademacher"]
OutputName = Literal[
    "loss",
    "mean-squared-l2-norm",
    "mean",
    "l1-norm",
    "l2-norm",
    "linf-norm",
    "weighted-mse",
    "noise-mean-squared-l2-norm",
    "noise-mean",
    "noise-l1-norm",
    "noise-l2-norm",
    "noise-linf-norm",
    "image-mean-squared-l2-norm",
    "image-mean",
    "image-l1-norm",
    "image-l2-norm",
    "image-linf-norm",
]  # the functions of dtrak.gradients.outputs, of the prediction, of the noise ε̂ or of the image x̂₀ that follow from it


class Frozen(BaseModel):
    """Refuses unknown keys, and changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FeatureConfig(Frozen):
    """One feature set: the mean of ∇f over timesteps and noise draws, projected to k numbers.

    ``apart`` stores the projected gradient of each (timestep, draw) pair separately, so that any selection
    of them is a weighted sum of stored parts. ``model`` is "last" or the name of a checkpoint or an ensemble
    member. Do not list ``split``: every set has the counterparts "truth", the evaluation queries, and
    "unrelated", the images of the significance test.
    """

    output: OutputName
    timesteps: int = Field(10, ge=1, le=TIMES)
    strategy: Literal["uniform", "cumulative"] = "uniform"
    noise_draws: int = Field(1, ge=1)
    first_draw: int = Field(0, ge=0)
    noise_seed: int = 0
    apart: bool = False
    model: str = LAST
    split: Split = "train"
    projection: ProjectionKind = "sparse"
    projection_dim: int = Field(4096, ge=1)
    projection_seed: int = 0
    dtype: Literal["float32", "float16"] = "float32"

    def timestep_list(self, num_timesteps: int = TIMES) -> list[int]:
        """``range(0, T, T//K)`` cut to K for uniform, ``range(K)`` for cumulative."""
        return timestep_list(self.timesteps, self.strategy, num_timesteps)

    def pairs(self, num_timesteps: int = TIMES) -> list[tuple[int, int]]:
        """All (timestep, draw) pairs, draws outermost."""
        draws = range(self.first_draw, self.first_draw + self.noise_draws)
        return [(t, draw) for draw in draws for t in self.timestep_list(num_timesteps)]


def timestep_list(count: int, strategy: str, num_timesteps: int = TIMES) -> list[int]:
    """``range(0, T, T//K)`` cut to K for "uniform", ``range(K)`` for "cumulative"."""
    if strategy == "cumulative":
        return list(range(count))
    return list(range(0, num_timesteps, num_timesteps // count))[:count]
