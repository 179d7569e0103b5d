"""Methods that average over checkpoints of the training: TracInCP and GAS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dtrak.config import LAST
from dtrak.methods.base import LOSS, Method
from dtrak.methods.influence import FEATURE_CHOICES, GradientMethod
from dtrak.utils.errors import DtrakError

if TYPE_CHECKING:
    from dtrak.methods.settings import Setting
    from dtrak.methods.training_side import TrainingSide


@dataclass(frozen=True, kw_only=True)
class CheckpointMethod(GradientMethod):
    """The mean score over all checkpoints."""

    needs: str = "features of the loss at each checkpoint"
    choices: ClassVar[frozenset[str]] = FEATURE_CHOICES

    @property
    def splits(self) -> bool:  # type: ignore[override]
        """No: a score is a mean over several models."""
        return False

    def models_of(self, study: TrainingSide, setting: Setting) -> list[str]:
        """See :class:`GradientMethod`."""
        checkpoints = [name for name, kind in study.variants.items() if kind == "checkpoint"]
        if not checkpoints:
            raise DtrakError(
                f"Study '{study.folder.study.name}' has no earlier checkpoints.",
                hint="List them under model.checkpoints.",
            )
        return [*checkpoints, LAST]


METHODS: tuple[Method, ...] = (
    CheckpointMethod(
        name="tracin",
        title="TracInCP",
        output=LOSS,
        formula="τ(x, n) = mean over checkpoints c of φ_c(x)ᵀ φ_c,ₙ,  φ of the loss",
        source="Pruthi et al., NeurIPS 2020",
    ),
    CheckpointMethod(
        name="gas",
        title="GAS",
        output=LOSS,
        normaliser="cosine",
        formula="τ(x, n) = mean over checkpoints c of φ_c(x)ᵀ φ_c,ₙ / (‖φ_c(x)‖ ‖φ_c,ₙ‖),  φ of the loss",
        source="Hammoudeh & Lowd, CCS 2022",
    ),
)
