"""Computing exact influence for a study's queries, and checking it against trainings with changed weights."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from dtrak.config import TruthConfig
from dtrak.evaluation.subsets import judged_losses
from dtrak.methods.exact import SMOOTH, check_exact, folder_of, path_of
from dtrak.methods.query import Query
from dtrak.models.base import DiffusionModel
from dtrak.study.folder import StudyFolder
from dtrak.training.adjoint import Replay
from dtrak.training.loop import Run
from dtrak.training.study import training_run
from dtrak.utils.errors import DtrakError
from dtrak.utils.files import digest, write_json, write_npy


@dataclass(frozen=True)
class Exact:
    """The exact influence on some queries.

    Attributes:
        scores: −∂L/∂w_n of each query and training sample: positive for samples that lower the loss.
        growth: the largest norm of the adjoint over the replay, relative to its start. If it is large, a removal is
            not small, and the derivative says little about it.
    """

    scores: Float[np.ndarray, "q n"]
    growth: float

    @property
    def smooth(self) -> bool:
        """Whether the adjoint grew so little that the derivative may say what a removal does."""
        return self.growth <= SMOOTH


@dataclass(frozen=True)
class Checked:
    """One training image's derivative beside a central difference of two trainings.

    Attributes:
        exact: ∂L/∂w_n.
        difference: (L at w_n = 1 + δ, minus L at 1 − δ) / 2δ, from two trainings.
    """

    id: str
    exact: float
    difference: float


def query_loss(model: DiffusionModel, query: Query, truth: TruthConfig) -> Callable[[], Tensor]:
    """The loss that retrained models are measured by, as a differentiable function of the model's present weights."""
    x = model.encode(query.pixels[None]).to(model.device)
    return lambda: judged_losses(model, query, x, truth.pairs).mean()


def exact_influence(
    folder: StudyFolder,
    queries: Sequence[Query],
    report: Callable[[int, int], None] = lambda done, total: None,
    double: bool = False,
    device: str = "cpu",
) -> Exact:
    """Compute the exact influence on some queries in one replay of the study's training, and store it; resumable.

    Args:
        report: called with (steps done, total steps).
        double: compute in float64; then nothing is stored.

    Raises:
        DtrakError: the training cannot be differentiated, or its adjoint is no longer finite.
    """
    check_exact(folder)
    place = folder_of(folder) / f"replay-{digest([[q.id, q.label] for q in queries] + [double])}"
    run = _run(folder, None, double, device)
    replay = Replay(run, place)
    losses = [query_loss(run.model, query, folder.study.truth) for query in queries]
    try:
        scores = -replay.influences(losses, report).cpu().numpy()
    except DtrakError:  # to go on would fail again
        shutil.rmtree(place, ignore_errors=True)
        raise
    growth = max(replay.growth) / (replay.growth[0] or 1.0)
    if not double:
        for query, row in zip(queries, scores, strict=True):
            write_npy(path_of(folder, query), row.astype(np.float32))
            write_json(path_of(folder, query).with_suffix(".json"), {"growth": growth})
    shutil.rmtree(place, ignore_errors=True)
    return Exact(scores, growth)


def check_exact_influence(
    folder: StudyFolder,
    query: Query,
    ids: Sequence[str],
    delta: float,
    double: bool = False,
    report: Callable[[int, int], None] = lambda done, total: None,
    device: str = "cpu",
) -> tuple[list[Checked], Exact]:
    """Compare derivatives with central differences: two more trainings for each image.

    Args:
        ids: of the training images.
        delta: how far weights are changed.
        report: called with (steps done, total steps).

    Raises:
        DtrakError: the training cannot be differentiated, or there is no such training image.
    """
    known = {sample: row for row, sample in enumerate(folder.table.train_ids)}
    if missing := [sample for sample in ids if sample not in known]:
        raise DtrakError(f"There is no training image '{missing[0]}'.", hint="Ids are listed by attribute --json.")
    steps = folder.study.training.steps
    total = 3 * steps + 2 * len(ids) * steps
    found = exact_influence(folder, [query], lambda done, _: report(done, total), double, device)
    checked = []
    for number, sample in enumerate(ids):
        sides = []
        for side, sign in enumerate((1, -1)):
            weights = np.ones(len(known))
            weights[known[sample]] += sign * delta
            before = (3 + 2 * number + side) * steps
            sides.append(_trained_loss(folder, query, weights, double, device, partial(_later, report, before, total)))
        difference = (sides[0] - sides[1]) / (2 * delta)
        checked.append(Checked(sample, -float(found.scores[0, known[sample]]), difference))
    return checked, found


def _later(report: Callable[[int, int], None], before: int, total: int, done: int) -> None:
    report(before + done, total)


def _run(folder: StudyFolder, weights: Float64[np.ndarray, " n"] | None, double: bool, device: str) -> Run:
    dtype = torch.float64 if double else torch.float32
    chosen = None if weights is None else torch.from_numpy(weights).to(dtype)
    run = training_run(folder, folder.study.training, weights=chosen, device=device)
    if double:
        run.model.network.double()
        run.model.dtype = torch.float64
        run = Run(
            run.model, run.config, run.batches.inputs, run.batches.ids, run.batches.names, None,
            torch.ones(len(run.batches.ids), dtype=dtype) if chosen is None else chosen,
        )  # fmt: skip
    return run


@torch.no_grad()
def _trained_loss(
    folder: StudyFolder,
    query: Query,
    weights: Float64[np.ndarray, " n"],
    double: bool,
    device: str,
    report: Callable[[int], None],
) -> float:
    run = _run(folder, weights, double, device)
    with torch.enable_grad():
        run.train(lambda progress: report(progress.step))
    run.use_average()
    return float(query_loss(run.model, query, folder.study.truth)())
