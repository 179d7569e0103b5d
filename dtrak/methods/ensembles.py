"""Methods that average over an ensemble of models trained on different random halves of the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dtrak.config import LAST
from dtrak.methods.base import LOSS, PARK, SQUARE, ZHENG, Method
from dtrak.methods.influence import FEATURE_CHOICES, GradientMethod
from dtrak.utils.errors import DtrakError

if TYPE_CHECKING:
    from dtrak.methods.settings import Setting
    from dtrak.methods.training_side import TrainingSide


@dataclass(frozen=True, kw_only=True)
class EnsembleMethod(GradientMethod):
    """The mean score over the last checkpoint and the ensemble's members."""

    needs: str = "features of its output function for each ensemble member"
    choices: ClassVar[frozenset[str]] = FEATURE_CHOICES

    @property
    def splits(self) -> bool:  # type: ignore[override]
        """No: a score is a mean over several models."""
        return False

    def models_of(self, study: TrainingSide, setting: Setting) -> list[str]:
        """See :class:`GradientMethod`."""
        members = [name for name, kind in study.variants.items() if kind == "member"]
        if not members:
            name = study.folder.study.name
            raise DtrakError(
                f"Study '{name}' has no ensemble.",
                hint=f"python -m index_builder train {name} --member 1, then list its features under ablations.",
            )
        return [LAST, *members]


METHODS: tuple[Method, ...] = (
    EnsembleMethod(
        name="dtrak-ensemble",
        title="D-TRAK ensemble",
        output=SQUARE,
        damping=0.316,
        formula="mean over models of D-TRAK's τ, each with its own features and kernel",
        source=ZHENG,
    ),
    EnsembleMethod(
        name="trak-ensemble",
        title="TRAK ensemble",
        output=LOSS,
        damping=3.16,
        formula="mean over models of TRAK's τ, each with its own features and kernel",
        source=PARK,
    ),
)
