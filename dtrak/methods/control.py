"""Negative controls: scores that are independent of the model and the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dtrak.methods.base import Features, Method, Scores
from dtrak.utils.noise import keyed_generator

if TYPE_CHECKING:
    from dtrak.methods.attributor import Attributor
    from dtrak.methods.query import Query
    from dtrak.methods.settings import Setting


@dataclass(frozen=True, kw_only=True)
class RandomMethod(Method):
    """Random scores, keyed by the query id."""

    control: ClassVar[bool] = True
    tested: ClassVar[bool] = False

    def scores(
        self, study: Attributor, setting: Setting, query: Query, features: Features
    ) -> tuple[Scores, float | None]:
        """See :class:`Method`."""
        return keyed_generator("random", 0, query.id).uniform(-1, 1, study.table.train_size), None


METHODS: tuple[Method, ...] = (
    RandomMethod(name="random", title="Random", formula="τ(x, n) uniform in [−1, 1]", source="the null"),
)
