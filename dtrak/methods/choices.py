"""Which choices of a setting a study can answer from what is stored."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dtrak.gradients.outputs import OUTPUT_FUNCTIONS
from dtrak.methods.attributor import Attributor
from dtrak.methods.settings import Setting
from dtrak.utils.errors import DtrakError

TIMESTEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
DRAWS = (1, 2, 3, 5)


@dataclass(frozen=True)
class Offer:
    """The values of one choice that are answered from what is stored, and those that are not."""

    values: list[Any]
    missing: list[Any]


def offer(attributor: Attributor, setting: Setting, choice: str) -> Offer:
    """What one choice of a setting can be changed to, with nothing else changed.

    Args:
        choice: a field of :class:`Setting`: output, timesteps, strategy, draws, projection_dim,
            projection_seed or checkpoint.
    """
    study = attributor.folder.study
    possible: dict[str, Callable[[], Sequence[Any]]] = {
        "output": lambda: list(OUTPUT_FUNCTIONS),
        "timesteps": lambda: sorted({*TIMESTEPS, *(c.timesteps for c in study.feature_sets)}),
        "strategy": lambda: ["uniform", "cumulative"],
        "draws": lambda: DRAWS,
        "projection_seed": lambda: sorted({c.projection_seed for c in study.feature_sets}),
        "projection_dim": lambda: _powers(attributor.sides(setting)[0].sources[0].config.projection_dim),
        "checkpoint": lambda: list(attributor.variants),
    }
    values = possible[choice]()
    works = [changed(attributor, setting, choice, value) is not None for value in values]
    return Offer(
        [value for value, ok in zip(values, works, strict=True) if ok],
        [value for value, ok in zip(values, works, strict=True) if not ok],
    )


def changed(attributor: Attributor, setting: Setting, choice: str, value: Any) -> Setting | None:
    """The setting with one choice changed, or None if that is not stored.

    Another checkpoint or strategy may be stored with other timesteps: then those are taken.
    """
    tried = setting.with_(**{choice: value})
    counts = (
        (tried.timesteps, None, *reversed(TIMESTEPS)) if choice in ("checkpoint", "strategy") else (tried.timesteps,)
    )
    for count in counts:
        if stored(attributor, tried.with_(timesteps=count)):
            return tried.with_(timesteps=count)
    return None


def stored(attributor: Attributor, setting: Setting) -> bool:
    """Whether everything of the training side is built for a setting."""
    try:
        for side in attributor.sides(setting):
            for source in side.sources:
                attributor.store(source.config)
    except DtrakError:
        return False
    return True


def _powers(largest: int) -> list[int]:
    found = [2**power for power in range(4, 24) if 2**power < largest]
    return [*found[-8:], largest]
