"""The choices of the paper's ablations, each declared once.

A :class:`Choice` is a field of a :class:`Setting`: the command line's options, the labels and values on the Ablate
page, the rows of ``evaluate`` and the table of docs/methods.md are made from it. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from dtrak.config import LAST, TIMES, OutputName, Study
from dtrak.methods.base import Normaliser
from dtrak.utils.errors import DtrakError

if TYPE_CHECKING:
    from dtrak.methods.attributor import Attributor
    from dtrak.methods.settings import Setting

AUTO = "auto"
MOST_DRAWS = 100
LEAST_DAMPING, MOST_DAMPING = 1e-8, 1e12  # below, float64 cannot tell duplicate rows apart
TIMESTEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, TIMES)
DRAWS = (1, 2, 3, 5)
OUTPUTS: tuple[str, ...] = get_args(OutputName)
STRATEGIES = {"uniform": "uniform", "cumulative": "cumulative (the first K)"}
NORMALISERS = {"none": "nothing", "norm": "‖φₙ‖", "cosine": "‖φₙ‖ ‖φ(x)‖", "influence": "‖(ΦᵀΦ+λI)⁻¹φₙ‖"}
assert tuple(sorted(NORMALISERS)) == tuple(sorted(get_args(Normaliser)))


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One choice.

    Attributes:
        name: the field of a :class:`Setting`.
        label: on the page and in figures.
        help: in a sentence.
        default: None means what the method, or what is stored, says.
        read: from the text of a URL or an option; raises ValueError.
        valid: whether a value is possible.
        possible: the possible values, in words.
        title: how the title of a setting says a value that is not the default.
        offered: the values that a page offers, of which it shows those that are stored.
        option: of the command line, if it is not the name.
        measured: how ``evaluate`` measures it: each value by its own features, all values with the timesteps and the
            projection that each of them has ("aligned"), along the damping curve of every row, or not at all.
        note: beside its figure on Evaluate.
        values: words for values, where they are names.
    """

    name: str
    label: str
    help: str
    default: Any = None
    read: Callable[[str], Any] = str
    valid: Callable[[Any], bool]
    possible: str
    title: Callable[[Any], str] = str
    offered: Callable[[Study, int], Sequence[Any]] = lambda study, stored_dim: ()
    option: str = ""
    measured: Literal["alone", "aligned", "curve", "no"] = "alone"
    note: str = "λ is cross-fitted at each point."
    values: dict[str, str] | None = None

    def shown(self, value: Any) -> str:
        """A value in words."""
        return (self.values or {}).get(value, plain(value))

    @property
    def flag(self) -> str:
        """The option of the command line."""
        return "--" + (self.option or self.name).replace("_", "-")

    def check(self, value: Any) -> None:
        """Refuse an impossible value.

        Raises:
            DtrakError: it says what is possible.
        """
        if value is not None and not self.valid(value):
            raise DtrakError(f"{self.name} cannot be {value!r}.", hint=f"Possible: {self.possible}.")


def parse_damping(text: str) -> float | Literal["auto"]:
    """ "auto" or a number."""
    return "auto" if text == AUTO else float(text)


def _powers_of_two(largest: int) -> list[int]:
    found = [2**power for power in range(4, 24) if 2**power < largest]
    return [*found[-8:], largest]


CHOICES: dict[str, Choice] = {
    choice.name: choice
    for choice in (
        Choice(
            name="checkpoint",
            label="Checkpoint",
            help="Which of the study's models, such as checkpoint-0.50.",
            default=LAST,
            valid=lambda value: isinstance(value, str) and bool(value),
            possible="the study's models",
            measured="aligned",
            note="All checkpoints with the timesteps and the projection that each of them has.",
        ),
        Choice(
            name="output",
            label="Output function",
            help="f of the predicted noise.",
            valid=lambda value: value in OUTPUTS,
            possible=", ".join(OUTPUTS),
            offered=lambda study, stored_dim: OUTPUTS,
            measured="aligned",
            note="All output functions with the timesteps and the projection that each of them has; each at its own λ.",
        ),
        Choice(
            name="strategy",
            label="Timestep selection",
            help="K timesteps spread over all (uniform), or the first K (cumulative).",
            default="uniform",
            valid=lambda value: value in STRATEGIES,
            possible="uniform, cumulative",
            title=lambda value: "the first timesteps",
            offered=lambda study, stored_dim: tuple(STRATEGIES),
            measured="aligned",
            note="Both with the number of timesteps that is stored for the first ones.",
            values=STRATEGIES,
        ),
        Choice(
            name="timesteps",
            label="K, timesteps",
            help="How many timesteps a feature is the mean of.",
            read=int,
            valid=lambda value: 1 <= value <= TIMES,
            possible=f"1 to {TIMES}",
            title=lambda value: f"K = {value}",
            offered=lambda study, stored_dim: sorted({*TIMESTEPS, *(c.timesteps for c in study.feature_sets)}),
        ),
        Choice(
            name="draws",
            label="Noise draws",
            help="Independent noises for each timestep.",
            default=1,
            read=int,
            valid=lambda value: 1 <= value <= MOST_DRAWS,
            possible=f"1 to {MOST_DRAWS}",
            title=lambda value: f"{value} draws",
            offered=lambda study, stored_dim: DRAWS,
        ),
        Choice(
            name="projection_seed",
            label="Projection seed",
            help="Which of the stored projections.",
            default=0,
            read=int,
            valid=lambda value: value >= 0,
            possible="a whole number from 0",
            title=lambda value: f"projection {value}",
            offered=lambda study, stored_dim: sorted({c.projection_seed for c in study.feature_sets}),
        ),
        Choice(
            name="projection_dim",
            label="k, projection dimension",
            help="The stored projection narrowed to k columns.",
            read=int,
            valid=lambda value: value >= 1,
            possible="a whole number from 1",
            title=lambda value: f"k = {value}",
            offered=lambda study, stored_dim: _powers_of_two(stored_dim),
            option="dim",
        ),
        Choice(
            name="damping",
            label="λ, damping",
            help="Relative to the kernel's mean non-zero eigenvalue. Small: what is special about an image counts; "
            "large: plain inner products. 'auto' lets half of the kernel's directions count.",
            read=parse_damping,
            valid=lambda value: value == AUTO or (isinstance(value, float) and LEAST_DAMPING <= value < MOST_DAMPING),
            possible=f"{LEAST_DAMPING:g} to {MOST_DAMPING:g}, or auto",
            title=lambda value: f"λ = {plain(value)}",
            measured="curve",
            note="On all subset models; every other number on this page is cross-fitted.",
        ),
        Choice(
            name="normaliser",
            label="Divide scores by",
            help="What the score of each training image is divided by.",
            valid=lambda value: value in NORMALISERS,
            possible=", ".join(NORMALISERS),
            title=lambda value: f"normaliser {value}",
            measured="no",
            values=NORMALISERS,
        ),
    )
}


def plain(value: Any) -> str:
    """A value as URLs and titles carry it."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def measured(how: str) -> list[str]:
    """Names of the choices that ``evaluate`` measures in one of its ways; see :class:`Choice`."""
    return [choice.name for choice in CHOICES.values() if choice.measured == how]


def choices_table() -> list[tuple[str, str, str, str]]:
    """Name, option, meaning and possible values of each choice, for the documentation."""
    return [(c.label, c.flag, c.help, c.possible) for c in CHOICES.values()]


@dataclass(frozen=True)
class Offer:
    """The values of one choice that are answered from what is stored, and those that are not."""

    values: list[Any]
    missing: list[Any]


def offer(attributor: Attributor, setting: Setting, choice: str) -> Offer:
    """What one choice of a setting can be changed to, with nothing else changed.

    Raises:
        DtrakError: the setting itself is not stored.
    """
    dim = attributor.sides(setting)[0].sources[0].config.projection_dim if choice == "projection_dim" else 0
    values = CHOICES[choice].offered(attributor.folder.study, dim)
    values = list(attributor.variants) if choice == "checkpoint" else list(values)
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


def aligned(attributor: Attributor, settings: Sequence[Setting]) -> list[Setting]:
    """Settings reduced to their smallest common timesteps and projection_dim, so that nothing else differs.

    Raises:
        DtrakError: features of a setting are missing.
    """
    sides = [attributor.sides(setting)[0] for setting in settings]
    timesteps, dim = min(len(side.pairs) for side in sides), min(side.dim for side in sides)
    return [setting.with_(timesteps=timesteps, projection_dim=dim) for setting in settings]


def stored(attributor: Attributor, setting: Setting) -> bool:
    """Whether everything of the training side is built for a setting."""
    try:
        for side in attributor.sides(setting):
            for source in side.sources:
                attributor.store(source.config)
    except DtrakError:
        return False
    return True
