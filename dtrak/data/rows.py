"""One split of a source as rows that are read on demand, and the paper's random draws."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from dtrak.data.records import Item
from dtrak.utils.errors import DtrakError


@dataclass(frozen=True)
class Rows:
    """One split of a source.

    Attributes:
        labels: labels of all rows, in source order.
        read: maps a row number to its item.
    """

    labels: Sequence[str | None]
    read: Callable[[int], Item]

    def chosen(
        self, include: Sequence[str], size: int | None, seed: int, stratify: bool, exclude: Sequence[str] = ()
    ) -> list[int]:
        """Numbers of the rows with the given labels, or of a random draw of ``size`` of them.

        Args:
            include: labels; empty means all.
            size: number of rows to draw; None for all rows, in source order.
            exclude: labels to exclude; takes precedence over ``include``.

        Raises:
            DtrakError: a label does not occur, or there are too few rows.
        """
        if unknown := sorted({*include, *exclude} - {label for label in self.labels if label is not None}):
            known = ", ".join(sorted({label for label in self.labels if label is not None}))
            raise DtrakError(f"The data have no label {', '.join(unknown)}.", hint=f"Labels: {known or 'none'}.")
        pool = [i for i, label in enumerate(self.labels) if (not include or label in include) and label not in exclude]
        if size is None or size == len(pool):
            return pool
        if size > len(pool):
            raise DtrakError(
                f"Cannot draw {size} images from {len(pool)}.", hint="Lower data.train_size or data.heldout_size."
            )
        return [pool[i] for i in drawn([self.labels[i] for i in pool], size, seed, stratify)]


def drawn(labels: Sequence[str | None], size: int, seed: int, stratify: bool) -> Int[np.ndarray, " size"]:
    """Indices of a draw, equal to ``train_test_split(df, train_size=size, random_state=seed, stratify=labels)``.

    Args:
        stratify: preserve the proportions of the labels; ignored without labels.
    """
    from sklearn.model_selection import train_test_split

    by = [str(label) for label in labels] if stratify and any(label is not None for label in labels) else None
    chosen, _ = train_test_split(np.arange(len(labels)), train_size=size, random_state=seed, stratify=by)
    return chosen
