"""The results that the paper's authors report."""

import csv
from dataclasses import dataclass
from functools import cache

from dtrak.config import ROOT

PUBLISHED = ROOT / "assets" / "published_lds.csv"
DATASETS = {
    "cifar2": "CIFAR-2",
    "cifar10": "CIFAR-10",
    "celeba": "CelebA",
    "artbench2": "ArtBench-2",
    "artbench5": "ArtBench-5",
}
SPLIT_OF = {"held-out": "val", "generated": "gen"}


@dataclass(frozen=True)
class PublishedRow:
    """One published LDS × 100; its λ was chosen on the models it is reported on."""

    method: str
    lds: float
    deviation: float


@cache
def _published() -> list[dict[str, str]]:
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def published(dataset: str, queries: str, timesteps: int | None = None) -> list[PublishedRow]:
    """The published results for one data set, best first.

    Args:
        dataset: a key of :data:`DATASETS`.
        queries: "held-out" or "generated".
        timesteps: only rows with this K, and those without a K.
    """
    found = []
    for row in _published():
        if row["dataset"] != dataset or row["split"] != SPLIT_OF[queries]:
            continue
        if timesteps is not None and row["timesteps"] not in ("", str(timesteps)):
            continue
        extra = [
            f"{name} = {row[column]}"
            for name, column in (("K", "timesteps"), ("M", "retrained_models"), ("S", "ensemble"))
            if row[column]
        ]
        mean = float(row["lds_percent_bootstrap_mean"])
        found.append(PublishedRow(" · ".join([row["method"], *extra]), mean, float(row["bootstrap_std"] or 0)))
    return sorted(found, key=lambda row: -row.lds)
