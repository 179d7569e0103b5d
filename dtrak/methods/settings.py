"""A setting: a method and every choice of the paper's ablations, as one value that a URL can carry."""

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from dtrak.config import LAST, TIMES
from dtrak.gradients.outputs import OUTPUT_FUNCTIONS
from dtrak.methods.base import Normaliser
from dtrak.methods.registry import METHODS, get_method
from dtrak.utils.errors import DtrakError

Strategy = Literal["uniform", "cumulative"]
AUTO = "auto"
MOST_DRAWS = 100
LEAST_DAMPING = 1e-8  # below it float64 cannot tell duplicate rows apart


@dataclass(frozen=True)
class Setting:
    """How to score; ``None`` is what the method itself, or what is stored, says.

    Attributes:
        method: its name.
        output: the output function of both sides.
        timesteps: K.
        strategy: K timesteps spread over all, or the first K.
        draws: noises for each timestep.
        projection_dim: k; a smaller one than stored takes the first columns.
        projection_seed: which of the stored projections.
        damping: λ relative to the kernel's mean non-zero eigenvalue, or "auto": the λ under which
            half of the kernel's directions count, Σ s/(s+λ) = rank/2.
        checkpoint: which of the study's models.
        normaliser: what each row's score is divided by.
    """

    method: str = "dtrak"
    output: str | None = None
    timesteps: int | None = None
    strategy: Strategy = "uniform"
    draws: int = 1
    projection_dim: int | None = None
    projection_seed: int = 0
    damping: float | Literal["auto"] | None = None
    checkpoint: str = LAST
    normaliser: Normaliser | None = None

    def __post_init__(self) -> None:
        method = get_method(self.method)
        _check(self.output in (None, *OUTPUT_FUNCTIONS), "output", self.output, ", ".join(OUTPUT_FUNCTIONS))
        _check(self.strategy in get_args(Strategy), "strategy", self.strategy, "uniform, cumulative")
        _check(self.normaliser in (None, *get_args(Normaliser)), "normaliser", self.normaliser, "see --help")
        for name in ("timesteps", "draws", "projection_dim"):
            value = getattr(self, name)
            _check(value is None or value >= 1, name, value, "a whole number from 1")
        _check((self.timesteps or 1) <= TIMES, "timesteps", self.timesteps, f"1 to {TIMES}")
        _check(self.draws <= MOST_DRAWS, "draws", self.draws, f"1 to {MOST_DRAWS}")
        damping = self.damping
        valid = damping is None or damping == AUTO or (isinstance(damping, float) and LEAST_DAMPING <= damping < 1e12)
        _check(valid, "damping", damping, f"{LEAST_DAMPING:g} to 1e12, or auto")
        changed = [f.name for f in fields(self) if f.name != "method" and getattr(self, f.name) != f.default]
        for name in changed:
            if not method.takes(name):
                raise DtrakError(f"{method.title} takes no {name}.", hint="Leave it out.")

    @property
    def text(self) -> str:
        """Short, for URLs and file names: "dtrak,timesteps=5,damping=0.1"."""
        changed = [f for f in fields(self) if f.name != "method" and getattr(self, f.name) != f.default]
        return ",".join([self.method, *(f"{f.name}={_plain(getattr(self, f.name))}" for f in changed)])

    @property
    def title(self) -> str:
        """For people: "D-TRAK · K = 5 · λ = 0.1"."""
        words = [METHODS[self.method].title]
        if self.output:
            words.append(self.output)
        if self.timesteps:
            words.append(f"K = {self.timesteps}")
        if self.strategy == "cumulative":
            words.append("the first timesteps")
        if self.draws > 1:
            words.append(f"{self.draws} draws")
        if self.projection_dim:
            words.append(f"k = {self.projection_dim}")
        if self.projection_seed:
            words.append(f"projection {self.projection_seed}")
        if self.damping is not None:
            words.append(f"λ = {_plain(self.damping)}")
        if self.checkpoint != LAST:
            words.append(self.checkpoint)
        if self.normaliser:
            words.append(f"normaliser {self.normaliser}")
        return " · ".join(words)

    def with_(self, **changes: Any) -> "Setting":
        """A copy with some choices changed."""
        return replace(self, **changes)

    @classmethod
    def parse(cls, text: str) -> "Setting":
        """The inverse of :attr:`text`.

        Raises:
            DtrakError: it names no method, an unknown choice, or a value out of range.
        """
        method, *pairs = text.split(",")
        values: dict[str, Any] = {}
        for pair in pairs:
            name, _, value = pair.partition("=")
            if name not in _READ:
                raise DtrakError(f"There is no choice '{name}'.", hint=f"Choices: {', '.join(_READ)}.")
            try:
                values[name] = _READ[name](value)
            except ValueError:
                raise DtrakError(f"'{value}' is no {name}.", hint="Give a number.") from None
        return cls(method, **values)


def parse_damping(text: str) -> float | Literal["auto"]:
    """ "auto" or a number."""
    return "auto" if text == AUTO else float(text)


_READ: dict[str, Any] = {
    "output": str,
    "timesteps": int,
    "strategy": str,
    "draws": int,
    "projection_dim": int,
    "projection_seed": int,
    "damping": parse_damping,
    "checkpoint": str,
    "normaliser": str,
}


def _plain(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _check(valid: bool, name: str, value: Any, choices: str) -> None:
    if not valid:
        raise DtrakError(f"{name} cannot be {value!r}.", hint=f"Possible: {choices}.")
