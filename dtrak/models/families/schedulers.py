"""The noise process that a UNet was trained with, by the scheduler of its pipeline."""

import warnings
from pathlib import Path
from typing import Any

from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from dtrak.models.diffusion import variance_preserving
from dtrak.models.flow_matching import FlowMatching
from dtrak.models.process import NoiseProcess
from dtrak.utils.errors import DtrakError
from dtrak.utils.files import read_note


def load_scheduler(path: Path) -> Any:
    """The scheduler in a pipeline's folder: of flow matching, or the training schedule of any other.

    Raises:
        DtrakError: it belongs to another noise process.
        OSError: there is none.
    """
    kind = FlowMatchEulerDiscreteScheduler
    described = read_note(path / kind.config_name)
    if described.get("_class_name") == kind.__name__:
        return kind.from_pretrained(path, local_files_only=True)
    if described:  # else diffusers says what is wrong
        _check_betas(str(described.get("_class_name")), described)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the pipeline's sampler has keys that DDPMScheduler ignores
        return DDPMScheduler.from_pretrained(path, local_files_only=True)


def process_of(scheduler: Any, tokens: int) -> NoiseProcess:
    """The process that a UNet's scheduler belongs to: flow matching, or diffusion by its prediction type.

    Args:
        scheduler: any of diffusers' schedulers that a pipeline comes with.
        tokens: see :class:`FlowMatching`.

    Raises:
        DtrakError: it is not supported.
    """
    if type(scheduler) is FlowMatchEulerDiscreteScheduler:
        return FlowMatching(scheduler, tokens)
    _check_betas(type(scheduler).__name__, scheduler.config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a sampler has keys that DDPMScheduler ignores
        return variance_preserving(DDPMScheduler.from_config(scheduler.config))


def _check_betas(name: str, config: Any) -> None:
    """Check that a scheduler's configuration has a schedule of β.

    Raises:
        DtrakError: it has none, as EDM's and other variants of flow matching.
    """
    if "beta_schedule" not in config:
        raise DtrakError(
            f"The pipeline's {name} has no β, and is not {FlowMatchEulerDiscreteScheduler.__name__}.",
            hint="Use a base whose scheduler is one of these two kinds.",
        )
