"""The ledger of a picture: shares by creator and "unattributed", which sum to 1.

A creator's observed share is that of their images in the positive scores. Unrelated images give every creator a share
too; what exceeds their mean is credited, and only if it exceeds what they give to *any* creator at the 5 % level. The
rest is unattributed: what cannot be told from chance is not given to anyone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from dtrak.analysis.significance import LEVEL, unrelated_scores
from dtrak.data import Record
from dtrak.methods.attributor import Attributor
from dtrak.methods.settings import Setting

UNKNOWN = "unknown"
RESAMPLES = 2000


@dataclass(frozen=True)
class Credit:
    """One creator's entry.

    Attributes:
        images: number of their training images.
        observed: their share of the positive scores.
        expected: its mean over unrelated images.
        p_value: of the null hypothesis that the picture is unrelated, corrected for all creators; None for several
            pictures.
        credited_in: number of pictures in which it is at most 5 %.
        credited: what they are credited with, from 0 to 1.
        low, high: 95 % interval of ``credited``; for one picture from the spread over unrelated images, for several
            by bootstrap over the pictures.
    """

    creator: str
    images: int
    observed: float
    expected: float
    p_value: float | None
    credited_in: int
    credited: float
    low: float
    high: float


@dataclass(frozen=True)
class Ledger:
    """The entries of all creators, the largest credit first, over some pictures.

    Attributes:
        unattributed: what nobody is credited with.
        pictures: number of pictures.
    """

    credits: tuple[Credit, ...]
    unattributed: float
    pictures: int = 1


@dataclass(frozen=True)
class ShareNull:
    """The shares that unrelated images give to each creator.

    Attributes:
        creators: their names, sorted.
        counts: number of training images of each.
        shares: of each unrelated image.
        kinds: of each unrelated image.
    """

    creators: tuple[str, ...]
    counts: tuple[int, ...]
    shares: Float[np.ndarray, "q creators"]
    kinds: tuple[str, ...]

    @classmethod
    def of(cls, records: Sequence[Record], lists: Float[np.ndarray, "q n"], kinds: Sequence[str]) -> "ShareNull":
        """From the scores of unrelated images."""
        names = [record.creator or UNKNOWN for record in records]
        creators = tuple(sorted(set(names)))
        shares = np.stack([shares_by(creators, names, row) for row in lists])
        return cls(creators, tuple(names.count(c) for c in creators), shares, tuple(kinds))

    def entry(self, observed: Float[np.ndarray, " creators"]) -> Ledger:
        """The ledger of one picture."""
        mean, spread = self.shares.mean(0), np.maximum(self.shares.std(0), 1e-9)
        statistic = (observed - mean) / spread
        tops = ((self.shares - mean) / spread).max(1)
        p_values = np.zeros(len(mean))
        for kind in dict.fromkeys(self.kinds):  # the test must hold against each kind
            of_kind = tops[np.array(self.kinds) == kind]
            p_values = np.maximum(p_values, (1 + (of_kind >= statistic[:, None]).sum(1)) / (1 + len(of_kind)))
        excess = np.where(p_values <= LEVEL, np.maximum(observed - mean, 0), 0.0)
        around = np.quantile(self.shares - mean, [0.025, 0.975], axis=0)
        low, high = (np.where(excess > 0, np.clip(excess - a, 0, 1), 0.0) for a in (around[1], around[0]))
        tested = [(float(p), int(p <= LEVEL)) for p in p_values]
        return _ledger(self, observed, tested, excess, low, high, 1)


def share_null(attributor: Attributor, setting: Setting) -> ShareNull:
    """The null of a setting, from the study's unrelated images.

    Raises:
        DtrakError: the method has no significance test, or features are not built.
    """
    table = attributor.table
    return ShareNull.of(table.records[: table.train_size], *unrelated_scores(attributor, setting))


def shares_by(
    creators: Sequence[str], names: Sequence[str], scores: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " creators"]:
    """Each creator's share of the positive scores; zeros if there are none.

    Args:
        names: the creator of each training image.
    """
    positive = np.maximum(scores, 0)
    of = np.searchsorted(creators, names)
    return np.bincount(of, positive, len(creators)) / (positive.sum() or 1.0)


def ledger(
    null: ShareNull, records: Sequence[Record], scores: Sequence[Float[np.ndarray, " n"]]
) -> tuple[Ledger, list[Ledger]]:
    """The ledger of several pictures, each with the same weight, and that of each picture.

    Args:
        records: of the training images.
        scores: of the training images, one array per picture.
    """
    names = [record.creator or UNKNOWN for record in records]
    each = [null.entry(shares_by(null.creators, names, row)) for row in scores]
    if len(each) == 1:
        return each[0], each
    by_name = [{credit.creator: credit for credit in one.credits} for one in each]
    rows = np.array([[of[c].credited for c in null.creators] for of in by_name])
    observed = np.array([[of[c].observed for c in null.creators] for of in by_name]).mean(0)
    tested = [(None, sum(of[c].credited_in for of in by_name)) for c in null.creators]
    chosen = np.random.default_rng(0).integers(0, len(rows), (RESAMPLES, len(rows)))
    low, high = np.quantile(rows[chosen].mean(1), [0.025, 0.975], axis=0)
    return _ledger(null, observed, tested, rows.mean(0), low, high, len(rows)), each


def merged_change(
    records: Sequence[Record], scores: Sequence[Float[np.ndarray, " n"]], groups: Int[np.ndarray, " n"]
) -> dict[str, float]:
    """How much each creator's observed share falls if near-duplicates count once: 0.2 is a fifth of the share.

    A creator can inflate their share by adding copies; a large fall says so.

    Args:
        groups: near-duplicate group of each training image.
    """
    names = [record.creator or UNKNOWN for record in records]
    creators = tuple(sorted(set(names)))
    before = np.mean([shares_by(creators, names, row) for row in scores], axis=0)
    order = np.arange(len(groups))
    after = []
    for row in scores:
        strongest = np.lexsort((order, -row))
        first = strongest[np.sort(np.unique(groups[strongest], return_index=True)[1])]
        once = np.zeros_like(row)
        once[first] = row[first]
        after.append(shares_by(creators, names, once))
    fall = 1 - np.mean(after, axis=0) / np.where(before > 0, before, 1.0)
    return {creator: float(f) for creator, f, b in zip(creators, fall, before, strict=True) if b > 0}


def _ledger(
    null: ShareNull,
    observed: np.ndarray,
    tested: Sequence[tuple[float | None, int]],
    credited: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    pictures: int,
) -> Ledger:
    expected = null.shares.mean(0)
    found = [
        Credit(creator, null.counts[i], float(observed[i]), float(expected[i]), *tested[i],
               *(float(v[i]) for v in (credited, low, high)))
        for i, creator in enumerate(null.creators)
    ]  # fmt: skip
    order = sorted(found, key=lambda credit: (-credit.credited, -credit.observed, credit.creator))
    return Ledger(tuple(order), float(1 - credited.sum()), pictures)
