"""A setting: a method and every choice of the paper's ablations, as one value that a URL can carry."""

from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import Any, Literal

from dtrak.config import LAST
from dtrak.methods.base import Damping, Normaliser
from dtrak.methods.choices import AUTO, CHOICES, parse_damping, plain
from dtrak.methods.registry import METHODS, get_method
from dtrak.utils.errors import DtrakError

Strategy = Literal["uniform", "cumulative"]


@dataclass(frozen=True)
class Setting:
    """How to score; ``None`` is what the method itself, or what is stored, says.

    The fields beside ``method`` are the choices of :data:`dtrak.methods.choices.CHOICES`.

    Raises:
        DtrakError: a value is impossible, or the method takes no such choice.
    """

    method: str = "dtrak"
    output: str | None = None
    timesteps: int | None = None
    strategy: Strategy = "uniform"
    draws: int = 1
    projection_dim: int | None = None
    projection_seed: int = 0
    damping: Damping = None
    checkpoint: str = LAST
    normaliser: Normaliser | None = None

    def __post_init__(self) -> None:
        method = get_method(self.method)
        if isinstance(self.damping, Real) and not isinstance(self.damping, bool):
            object.__setattr__(self, "damping", float(self.damping))  # an int, or a number of NumPy's
        for name, choice in CHOICES.items():
            choice.check(getattr(self, name))
        for name in self._changed():
            if not method.takes(name):
                raise DtrakError(f"{method.title} takes no {name}.", hint="Leave it out.")

    def _changed(self) -> list[str]:
        return [f.name for f in fields(self) if f.name != "method" and getattr(self, f.name) != f.default]

    @property
    def text(self) -> str:
        """Short, for URLs and file names: "dtrak,timesteps=5,damping=0.1"."""
        return ",".join([self.method, *(f"{name}={plain(getattr(self, name))}" for name in self._changed())])

    @property
    def title(self) -> str:
        """For people: "D-TRAK · K = 5 · λ = 0.1"."""
        words = [CHOICES[name].title(getattr(self, name)) for name in self._changed()]
        return " · ".join([METHODS[self.method].title, *words])

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
            if name not in CHOICES:
                raise DtrakError(f"There is no choice '{name}'.", hint=f"Choices: {', '.join(CHOICES)}.")
            try:
                values[name] = CHOICES[name].read(value)
            except ValueError:
                raise DtrakError(f"'{value}' is no {name}.", hint="Give a number.") from None
        return cls(method, **values)


__all__ = ["AUTO", "Setting", "Strategy", "parse_damping"]
