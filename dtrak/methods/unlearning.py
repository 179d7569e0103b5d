"""Unlearning: make a copy of the model forget the query, and see which training images it forgets with it.

Wang et al., NeurIPS 2024 (arXiv 2406.09408). A few steps raise the query's loss by half, along its gradient divided by
the diagonal of the Fisher matrix, so that weights that matter to the training images move least. The score of a
training image is the rise of its own loss, with the same keyed noise before and after. It needs no training recipe,
so it is a second opinion on models that were not trained here; a query costs a pass over all training images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dtrak.config import LAST, FeatureConfig
from dtrak.methods.base import LOSS, Features, Method, Need, Scores
from dtrak.utils.files import digest, write_npy
from dtrak.utils.noise import keyed_generator

if TYPE_CHECKING:
    from pathlib import Path

    from jaxtyping import Float
    from torch import Tensor

    from dtrak.index.faiss_index import QueryFeature
    from dtrak.methods.attributor import Attributor
    from dtrak.methods.query import Query
    from dtrak.methods.settings import Setting
    from dtrak.methods.training_side import TrainingSide
    from dtrak.models.base import DiffusionModel

VERSION = 2  # raise it whenever the scores change
TIMESTEPS = 10
STEPS, RISE = 5, 0.5  # steps of forgetting, and how much they raise the query's loss, to first order
IMAGES, FLOOR = 128, 0.1  # of the Fisher diagonal: training images, and what is added, relative to its mean
CONFIG = FeatureConfig(output=LOSS, timesteps=TIMESTEPS)


@dataclass(frozen=True, kw_only=True)
class UnlearningMethod(Method):
    """The rise of each training image's loss when the query is forgotten."""

    needs: str = "a pass over all training images for each query"
    tested: ClassVar[bool] = False
    light: ClassVar[bool] = False

    def require(self, study: TrainingSide) -> None:
        """See :class:`Method`; nothing but the model."""

    def note(self, study: TrainingSide) -> str:
        """See :class:`Method`."""
        return f"A query takes a pass over all {study.table.train_size:,} training images: minutes."

    def query_needs(self, study: Attributor, setting: Setting, query: Query) -> list[Need]:
        """See :class:`Method`."""
        content = {"unlearning": VERSION, **study.identity(CONFIG)}
        return [Need(CONFIG, content, partial(_forgotten, content))]

    def scores(
        self, study: Attributor, setting: Setting, query: Query, features: Features
    ) -> tuple[Scores, float | None]:
        """See :class:`Method`."""
        found = study.present(features, self.query_needs(study, setting, query)[0].key)
        return found.parts.astype(np.float64).ravel(), None


def _forgotten(identity: dict[str, Any], study: Attributor, query: Query) -> QueryFeature:
    from dtrak.execution.threads import task_threads
    from dtrak.index.faiss_index import QueryFeature
    from dtrak.models.loading import load_study_model

    model = load_study_model(study.folder, study.device)  # a copy: other jobs use the study's own
    with task_threads():
        before = _kept(study, "losses", partial(training_losses, study, model))
        fisher = _kept(study, "fisher", partial(fisher_diagonal, study, model))
        forget(model, query, fisher, study.batch_size)
        after = training_losses(study, model)
    return QueryFeature((after - before).astype(np.float32)[None], identity)


def forget(
    model: DiffusionModel, query: Query, fisher: Float[np.ndarray, " weights"], batch_size: int = TIMESTEPS
) -> None:
    """Raise the query's loss by ``RISE``, to first order, in ``STEPS`` steps; changes the model's weights.

    Args:
        fisher: from :func:`fisher_diagonal`.
        batch_size: timesteps in a pass; fewer where memory is insufficient.
    """
    import torch

    from dtrak.execution.memory import with_smaller_batches

    parameters: list[Tensor] = list(model.parameters().values())
    sizes = [p.numel() for p in parameters]
    weights = torch.from_numpy(1 / (fisher + FLOOR * (fisher.mean() or 1.0))).float().to(model.device).split(sizes)
    x = model.encode(query.pixels[None]).to(model.device)
    start, size = None, batch_size
    for _ in range(STEPS):
        (value, gradients), size = with_smaller_batches(
            partial(_loss_and_gradients, model, x, query.id, query.label), size
        )
        start = value if start is None else start
        steps = [g * w.view_as(g) for g, w in zip(gradients, weights, strict=True)]
        slope = sum(float((g * s).sum()) for g, s in zip(gradients, steps, strict=True))
        if slope <= 0:  # a stationary point
            return
        with torch.no_grad():
            torch._foreach_add_(parameters, steps, alpha=RISE * start / STEPS / slope)


def training_losses(study: Attributor, model: DiffusionModel) -> Float[np.ndarray, " n"]:
    """The mean loss of each training image at ``TIMESTEPS`` timesteps, with keyed noise."""
    import torch

    from dtrak.execution.memory import with_smaller_batches
    from dtrak.models.lora import lora_merged

    table, found, size = study.table, [], study.batch_size
    with torch.no_grad(), lora_merged(model.network):
        for row in range(table.train_size):
            x = model.encode(table.pixels[row][None]).to(model.device)

            def total(size: int, row: int = row, x: Tensor = x) -> float:
                return sum(float(p.sum()) for p in _losses(model, x, table.records[row].id, table.names[row], size))

            value, size = with_smaller_batches(total, size)
            found.append(value / TIMESTEPS)
    return np.array(found)


def fisher_diagonal(study: Attributor, model: DiffusionModel) -> Float[np.ndarray, " weights"]:
    """The mean square of the gradients of some training images' losses, in the order of the tuned weights."""
    import torch

    from dtrak.execution.memory import with_smaller_batches

    table = study.table
    rows = keyed_generator("fisher", 0, "").permutation(table.train_size)[:IMAGES].tolist()
    total = torch.zeros(sum(p.numel() for p in model.parameters().values()), dtype=torch.float64)
    size = study.batch_size
    for row in rows:
        x = model.encode(table.pixels[row][None]).to(model.device)
        (_, gradients), size = with_smaller_batches(
            partial(_loss_and_gradients, model, x, table.records[row].id, table.names[row]), size
        )
        total += torch.cat([g.flatten() for g in gradients]).double().cpu().square()
    return (total / len(rows)).numpy()


def _loss_and_gradients(
    model: DiffusionModel, x: Tensor, sample_id: str, label: str | None, batch_size: int
) -> tuple[float, list[Tensor]]:
    import torch

    parameters = list(model.parameters().values())
    total, sums = 0.0, [torch.zeros_like(p) for p in parameters]
    for part in _losses(model, x, sample_id, label, batch_size):
        value = part.sum() / TIMESTEPS
        total += float(value.detach())
        torch._foreach_add_(sums, list(torch.autograd.grad(value, parameters)))
    return total, sums


def _losses(model: DiffusionModel, x: Tensor, sample_id: str, label: str | None, batch_size: int) -> Iterator[Tensor]:
    """The losses at ``TIMESTEPS`` timesteps, a batch of timesteps at a time, each to be used before the next."""
    from dtrak.gradients.losses import pair_losses

    pairs = [(t, 0) for t in CONFIG.timestep_list(model.num_timesteps)]
    for start in range(0, len(pairs), batch_size):
        yield pair_losses(model, x, sample_id, label, pairs[start : start + batch_size])


def _kept(study: TrainingSide, name: str, make: Any) -> np.ndarray:
    """An array that depends on the study's model and data, computed once."""
    known = digest([VERSION, study.model_fingerprint(LAST), study.data_fingerprint, TIMESTEPS, IMAGES])
    path: Path = study.folder.root / "unlearning" / f"{name}-{known}.npy"
    if not path.exists():
        write_npy(path, make())
    return np.load(path)


METHODS: tuple[Method, ...] = (
    UnlearningMethod(
        name="unlearning",
        title="Unlearning",
        formula="τ(x, n) = L(n; θ₋ₓ) − L(n; θ),  θ₋ₓ the weights after forgetting x",
        source="Wang et al., NeurIPS 2024 (arXiv 2406.09408)",
    ),
)
