"""The LDS of every built method on a study's subset models, with λ chosen on some and reported on others."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float

from dtrak.attribution import Attributor, Query
from dtrak.errors import DtrakError
from dtrak.evaluation.lds import Score, lds, lds_with_interval
from dtrak.evaluation.subsets import query_set
from dtrak.files import digest, write_npy
from dtrak.methods import METHODS
from dtrak.settings import Setting
from dtrak.truth import SubsetTruth, load_subsets

POWERS = np.arange(-4.0, 4.01, 0.5)
Scores = Float[np.ndarray, "q n"]


@dataclass(frozen=True)
class Row:
    """How well one method predicts retraining, on one kind of query.

    Attributes:
        queries: "held-out" or "generated".
        lds_crossfit: λ chosen on half of the subset models, reported on the other half, both ways, averaged.
        lds_oracle: the best over λ on all subset models, as the paper reports; it flatters.
        interval: of lds_crossfit: 95 % of bootstrap resamples of the subset models, both ways, averaged.
        dampings: the λ chosen on either half, relative; empty without a kernel.
        curve: the LDS on all subset models at each λ of the grid, or alone.
    """

    method: str
    setting: str
    queries: str
    lds_crossfit: float
    lds_oracle: float
    interval: tuple[float, float]
    subset_models: int
    seeds: int
    dampings: tuple[float, ...]
    curve: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """As JSON carries it."""
        return asdict(self)


def evaluate(
    attributor: Attributor,
    settings: Sequence[Setting] | None = None,
    report: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> list[Row]:
    """Rows for some settings, by default each built method's own.

    Query features are computed once and kept beside the truth.

    Raises:
        DtrakError: there are fewer than four subset models.
    """
    truth = load_subsets(attributor.folder, "lds")
    if len(truth.masks) < 4:
        raise DtrakError(
            f"There are {len(truth.masks)} subset models; an LDS needs four at least, and says little below 64.",
            hint=f"python -m index_builder retrain {attributor.folder.study.name}",
        )
    asked = query_set(attributor.folder)
    settings = settings or [Setting(method.name) for method in attributor.methods()]
    groups = {"held-out": slice(0, asked.heldout), "generated": slice(asked.heldout, None)}
    rows = []
    for setting in settings:
        if METHODS[setting.method].trajectory or METHODS[setting.method].family == "truth":
            continue  # trajectories exist for generated images only; truth is known for its own queries only
        every = score_matrices(attributor, setting, asked.queries, partial(report, setting.title))
        for name, part in groups.items():
            rows.append(_row(setting, name, [scores[part] for scores in every], truth, part))
    return rows


def score_matrices(
    attributor: Attributor,
    setting: Setting,
    queries: Sequence[Query],
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[Scores]:
    """The scores of all queries: one matrix for each λ of the grid, or one alone without a kernel."""
    method = METHODS[setting.method]
    if method.family != "gradient":
        return [np.stack([attributor.scores(setting, query, {})[0] for query in queries])]
    free = method.damping is not None and setting.damping is None
    dampings = [10.0**p for p in POWERS] if free else [None]
    vectors = query_vectors(attributor, setting, queries, report)
    totals: list[Any] = [0.0] * len(dampings)
    sides = attributor.sides(setting)
    for side, matrix in zip(sides, vectors, strict=True):
        readout = attributor.readout(side)
        for i, damping in enumerate(dampings):
            used = readout.damping(setting.damping) if damping is None else damping
            normaliser = setting.normaliser or method.normaliser
            totals[i] = totals[i] + readout.scores(matrix, used, normaliser, method.residual) / len(sides)
    return totals


def query_vectors(
    attributor: Attributor,
    setting: Setting,
    queries: Sequence[Query],
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[Float[np.ndarray, "q k"]]:
    """φ of every query under a setting, one matrix a model; kept on disk, as λ and normalisers do not enter."""
    sides = attributor.sides(setting)
    sources = [[(attributor.fingerprint_of(s.config), s.weights, s.derived) for s in side.sources] for side in sides]
    root = attributor.folder.root / "truth" / "vectors"
    ids = digest([query.id for query in queries])
    paths = [root / f"{digest([ids, used, side.dim])}.npy" for used, side in zip(sources, sides, strict=True)]
    if not all(path.exists() for path in paths):
        found: list[list[np.ndarray]] = [[] for _ in sides]
        for done, query in enumerate(queries):
            report(done, len(queries))
            features = attributor.features(query, [setting], by_block=False)
            for rows, side in zip(found, sides, strict=True):
                rows.append(attributor.query_vector(setting, side, features, query))
        for path, rows in zip(paths, found, strict=True):
            write_npy(path, np.stack(rows))
    return [np.load(path) for path in paths]


def _row(setting: Setting, name: str, every: list[Scores], truth: SubsetTruth, part: slice) -> Row:
    masks, losses = truth.masks, truth.losses[:, part]
    curve = [float(lds(scores, masks, losses).mean()) for scores in every]
    even = np.arange(len(masks)) % 2 == 0
    reported: list[Score] = []
    chosen = []
    for half in (even, ~even):
        on_half = [lds(scores, masks[half], losses[half]).mean() for scores in every]
        chosen.append(int(np.argmax(on_half)))
        reported.append(lds_with_interval(every[chosen[-1]], masks[~half], losses[~half], 400))
    return Row(
        method=setting.method,
        setting=setting.text,
        queries=name,
        lds_crossfit=float(np.mean([s.mean for s in reported])),
        lds_oracle=max(curve),
        interval=(float(np.mean([s.low for s in reported])), float(np.mean([s.high for s in reported]))),
        subset_models=len(masks),
        seeds=min(truth.seeds),
        dampings=tuple(10.0 ** POWERS[i] for i in chosen) if len(every) > 1 else (),
        curve=tuple(curve),
    )
