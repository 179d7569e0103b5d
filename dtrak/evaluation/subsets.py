"""Subset models: the study's training repeated on parts of its data, and their losses on the evaluation queries.

The ground truth of attribution (Park et al., ICML 2023; Zheng et al., ICLR 2024): train M models, each on
a part of the training set, and record the loss of each on each query. Weights are discarded; masks follow
from (family, number), so each model leaves one small file:

    truth/<family>/subset-007-seed-1.json    losses by query, timestep and draw, with the training settings
    truth/queries.npz                        the queries: held-out images, then generated ones

Training randomness is keyed by (seed, epoch, sample id), so subset models of one seed differ only through
their data. :mod:`dtrak.methods.subsets` lists the families of subsets.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dtrak.config import TruthConfig
from dtrak.execution.memory import with_smaller_batches
from dtrak.execution.threads import task_threads
from dtrak.gradients.losses import pair_losses
from dtrak.methods.attributor import Attributor
from dtrak.methods.query import Query, QuerySet, generated_settings, load_query_set, save_query_set
from dtrak.methods.subsets import Family, belongs_to, subset_mask
from dtrak.models.base import DiffusionModel
from dtrak.models.lora import lora_merged
from dtrak.models.sampling import generate_all
from dtrak.study.folder import StudyFolder, check_retrainable, model_digest, truth_folders
from dtrak.training.study import training_run
from dtrak.utils.errors import DtrakError
from dtrak.utils.files import read_json, write_json
from dtrak.utils.noise import keyed_generator

MOST_HELDOUT = 1000
NOISE_SEED = 1  # features use 0
BATCH = 100  # (timestep, draw) pairs per forward pass
FIT_SEEDS = 1000
MOST_STORED = 100  # losses per query in a file


@dataclass(frozen=True)
class SubsetModel:
    """One subset model, identified by family, subset number and seed."""

    family: Family
    number: int
    seed: int

    @property
    def training_seed(self) -> int:
        """The seed of the training; the family "fit" uses seeds of its own."""
        return self.seed + (FIT_SEEDS if self.family == "fit" else 0)

    @property
    def name(self) -> str:
        """Its file name without the suffix."""
        return f"subset-{self.number:03d}-seed-{self.seed}"


def query_set(
    folder: StudyFolder, report: Callable[[int, int], None] = lambda done, total: None, device: str = "cpu"
) -> QuerySet:
    """The study's evaluation queries, generated once and then stored: pixels may differ between machines.

    They are the held-out images (at most ``MOST_HELDOUT``), then generated images, each with the label or caption
    of a random training image: so they are distributed as the training images are.

    Args:
        report: called with (images generated, total images).
    """
    with contextlib.suppress(DtrakError):
        return load_query_set(folder)
    attributor, table = Attributor(folder, device), folder.table
    rows = range(table.train_size, len(table.records))[:MOST_HELDOUT]
    pixels = [np.asarray(table.pixels[row]) for row in rows]
    labels = [table.names[row] for row in rows]
    random = keyed_generator("query conditions", 0, "")
    count, model = folder.study.truth.generated, attributor.model
    for _ in range(count):
        name = table.names[int(random.integers(table.train_size))]
        labels.append(name if model.takes_text or name in model.names else None)
    wanted = [generated_settings(number, labels[len(rows) + number], folder.study.guidance) for number in range(count)]
    pixels.extend(generate_all(model, wanted, report))
    asked = QuerySet(
        np.stack(pixels), tuple(label or "" for label in labels), len(rows), folder.study.guidance, model_digest(folder)
    )
    save_query_set(folder, asked)
    return asked


def judged_losses(
    model: DiffusionModel, query: Query, x: Float[Tensor, "1 *shape"], pairs: Sequence[tuple[int, int]]
) -> Float[Tensor, " pairs"]:
    """A query's losses by which retrained models are compared: with other noise than features have.

    Args:
        x: the encoded query.
        pairs: (timestep, draw) pairs.
    """
    return pair_losses(model, x, query.id, query.label, pairs, NOISE_SEED)


@torch.no_grad()
def query_losses(
    model: DiffusionModel, queries: Sequence[Query], config: TruthConfig = TruthConfig()
) -> Float[np.ndarray, "q pairs"]:
    """The losses of each query at all pairs of :attr:`TruthConfig.pairs`."""
    found, size = [], BATCH
    with lora_merged(model.network):
        for query in queries:
            x = model.encode(query.pixels[None]).to(model.device)

            def total(size: int, query: Query = query, x: Tensor = x) -> np.ndarray:
                chunks = [config.pairs[start : start + size] for start in range(0, len(config.pairs), size)]
                return torch.cat([judged_losses(model, query, x, chunk) for chunk in chunks]).cpu().numpy()

            losses, size = with_smaller_batches(total, size)
            found.append(losses)
    return np.stack(found)


def _compact(losses: Float[np.ndarray, "q pairs"]) -> Float[np.ndarray, "q parts"]:
    """Means over runs of equal length, at most ``MOST_STORED`` of them."""
    parts = next(d for d in range(min(MOST_STORED, losses.shape[1]), 0, -1) if losses.shape[1] % d == 0)
    return losses.reshape(len(losses), parts, -1).mean(2)


def is_done(folder: StudyFolder, subset: SubsetModel, now: dict[str, str] | None = None) -> bool:
    """Whether the losses of a subset model exist for the present data, recipe and queries.

    Args:
        now: from :func:`belongs_to`; pass it when checking many models, as computing it reads queries and weights.
    """
    paths = [root / subset.family / f"{subset.name}.json" for root in truth_folders(folder)]
    now = belongs_to(folder) if now is None else now
    return any(path.exists() and read_json(path).get("belongs_to") == now for path in paths)


def retrain(
    folder: StudyFolder, subset: SubsetModel, precision: Literal["fp32", "bf16"] | None = None, device: str = "cpu"
) -> None:
    """Train one subset model with the study's recipe, for as many epochs, and store its losses on the queries.

    Args:
        precision: default the recipe's. "bf16" is many times slower on processors without bfloat16 support.

    Raises:
        DtrakError: the study does not describe how its model was trained.
    """
    check_retrainable(folder)
    if is_done(folder, subset):
        return
    config = folder.study.training
    config = config.model_copy(update={"seed": subset.training_seed, "precision": precision or config.precision})
    with task_threads():
        mask = subset_mask(folder, subset.family, subset.number)
        run = training_run(folder, config, weights=torch.from_numpy(mask).float(), device=device)
        model = run.model
        run.train()
        run.use_average()
        queries = query_set(folder)
        losses = query_losses(model, queries.queries, folder.study.truth)
    content = {
        "family": subset.family,
        "number": subset.number,
        "seed": subset.seed,
        "steps": config.steps,
        "precision": config.precision,
        "belongs_to": belongs_to(folder),
        "timesteps": folder.study.truth.judged_timesteps,
        "draws": folder.study.truth.draws,
        "losses": [[float(f"{loss:.6g}") for loss in row] for row in _compact(losses).tolist()],
    }
    write_json(truth_folders(folder)[0] / subset.family / f"{subset.name}.json", content, indent=None)
