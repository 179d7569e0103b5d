"""The ledger of a picture: shares by creator and "unattributed", which sum to 1.

A creator's observed share is that of their images in the positive scores. Unrelated images give every creator a share
too; what exceeds their mean is credited, and only if it exceeds what they give to *any* creator at the 5 % level. The
rest is unattributed: what cannot be told from chance is not given to anyone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from dtrak.analysis.significance import LEVEL, rank_p, unrelated_scores, without_own
from dtrak.data import Records
from dtrak.methods.attributor import Attributor
from dtrak.methods.settings import Setting

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
        codes: the place in ``creators`` of each training image's.
        shares: of each unrelated image.
        kinds: of each unrelated image.
    """

    creators: tuple[str, ...]
    codes: Int[np.ndarray, " n"]
    shares: Float[np.ndarray, "q creators"]
    kinds: tuple[str, ...]

    @classmethod
    def of(cls, records: Records, lists: Float[np.ndarray, "q n"], kinds: Sequence[str]) -> "ShareNull":
        """From the scores of unrelated images."""
        creators, codes = creators_of(records)
        shares = np.stack([shares_by(len(creators), codes, row) for row in lists])
        return cls(creators, codes, shares, tuple(kinds))

    @cached_property
    def expected(self) -> Float[np.ndarray, " creators"]:
        """The mean share of each creator."""
        return self.shares.mean(0)

    @cached_property
    def tops(self) -> dict[str, Float[np.ndarray, " images"]]:
        """The statistic of each unrelated image by kind, ascending; without its own part in mean and spread."""
        others, apart = without_own(self.shares, self.expected, self.shares.std(0), len(self.shares))
        found, kinds = ((self.shares - others) / np.maximum(apart, self._least)).max(1), np.array(self.kinds)
        return {kind: np.sort(found[kinds == kind]) for kind in dict.fromkeys(self.kinds)}

    @cached_property
    def _least(self) -> float:
        """The least spread: a creator whom no unrelated image gives anything would divide by almost 0."""
        return 0.1 * float(np.median(self.shares.std(0))) or 1e-6

    @cached_property
    def _spread(self) -> Float[np.ndarray, " creators"]:
        return np.maximum(self.shares.std(0), self._least)

    @cached_property
    def _around(self) -> Float[np.ndarray, "2 creators"]:
        return np.quantile(self.shares - self.expected, [0.025, 0.975], axis=0)

    def entry(self, observed: Float[np.ndarray, " creators"]) -> Ledger:
        """The ledger of one picture."""
        statistic = (observed - self.expected) / self._spread
        p_values = np.max([rank_p(tops, statistic) for tops in self.tops.values()], axis=0)  # against each kind
        excess = np.where(p_values <= LEVEL, np.maximum(observed - self.expected, 0), 0.0)
        low, high = (np.where(excess > 0, np.clip(excess - a, 0, 1), 0.0) for a in self._around[::-1])
        tested = [(float(p), int(p <= LEVEL)) for p in p_values]
        return _ledger(self, observed, tested, excess, low, high, 1)


def share_null(attributor: Attributor, setting: Setting) -> ShareNull:
    """The null of a setting, from the study's unrelated images.

    Raises:
        DtrakError: the method has no significance test, or features are not built.
    """
    table = attributor.table
    return ShareNull.of(table.train_records, *unrelated_scores(attributor, setting))


def creators_of(records: Records) -> tuple[tuple[str, ...], Int[np.ndarray, " n"]]:
    """The creators, sorted, and the place of each training image's among them."""
    return records.grouped("creator")


def shares_by(
    creators: int, codes: Int[np.ndarray, " n"], scores: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " creators"]:
    """Each creator's share of the positive scores; zeros if there are none.

    Args:
        creators: their number.
        codes: the creator of each training image.
    """
    positive = np.maximum(scores, 0)
    return np.bincount(codes, positive, creators) / (positive.sum() or 1.0)


def ledger(null: ShareNull, scores: Sequence[Float[np.ndarray, " n"]]) -> tuple[Ledger, list[Ledger]]:
    """The ledger of several pictures, each with the same weight, and that of each picture.

    Args:
        scores: of the training images, one array per picture.
    """
    each = [null.entry(shares_by(len(null.creators), null.codes, row)) for row in scores]
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
    records: Records, scores: Sequence[Float[np.ndarray, " n"]], groups: Int[np.ndarray, " n"]
) -> dict[str, float]:
    """How much each creator's share falls if near-duplicates of their own count once: 0.2 is a fifth of the share.

    A creator can inflate their share by adding copies; a large fall says so.

    Args:
        groups: near-duplicate group of each training image.
    """
    creators, codes = creators_of(records)
    own = codes.astype(np.int64) * (int(groups.max()) + 1) + groups  # copies by others are not theirs
    before = np.mean([shares_by(len(creators), codes, row) for row in scores], axis=0)
    after = []
    for row in scores:
        strongest = np.argsort(-row, kind="stable")
        first = strongest[np.unique(own[strongest], return_index=True)[1]]
        once = np.zeros_like(row)
        once[first] = row[first]
        after.append(np.bincount(codes, np.maximum(once, 0), len(creators)) / (np.maximum(row, 0).sum() or 1.0))
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
    expected, counts = null.expected, np.bincount(null.codes, minlength=len(null.creators))
    found = [
        Credit(creator, int(counts[i]), float(observed[i]), float(expected[i]), *tested[i],
               *(float(v[i]) for v in (credited, low, high)))
        for i, creator in enumerate(null.creators)
    ]  # fmt: skip
    order = sorted(found, key=lambda credit: (-credit.credited, -credit.observed, credit.creator))
    return Ledger(tuple(order), float(1 - credited.sum()), pictures)
