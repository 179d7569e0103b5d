"""One split of a source as rows that are read one at a time, and the paper's way of drawing some of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from dtrak.data.records import Item
from dtrak.utils.errors import DtrakError


@dataclass(frozen=True)
class Rows:
    """A split of a source.

    Attributes:
        labels: of all rows, in the order of the source.
        read: row number → its item.
    """

    labels: Sequence[str | None]
    read: Callable[[int], Item]

    def chosen(
        self, include: Sequence[str], size: int | None, seed: int, stratify: bool, exclude: Sequence[str] = ()
    ) -> list[int]:
        """Numbers of the rows with these labels (of all, if none is named), or of a draw of ``size`` of them.

        Raises:
            DtrakError: a label is unknown, or there are too few rows.
        """
        if unknown := sorted({*include, *exclude} - {label for label in self.labels if label is not None}):
            known = ", ".join(sorted({label for label in self.labels if label is not None}))
            raise DtrakError(f"The data has no label {', '.join(unknown)}.", hint=f"It has: {known or 'no labels'}.")
        pool = [i for i, label in enumerate(self.labels) if (not include or label in include) and label not in exclude]
        if size is None or size == len(pool):
            return pool
        if size > len(pool):
            raise DtrakError(f"{size} images are to be drawn of {len(pool)}.", hint="Correct the sizes under data.")
        return [pool[i] for i in drawn([self.labels[i] for i in pool], size, seed, stratify)]


def drawn(labels: Sequence[str | None], size: int, seed: int, stratify: bool) -> Int[np.ndarray, " size"]:
    """Places of a draw, as ``train_test_split(df, train_size=size, random_state=seed, stratify=labels)`` orders them.

    Args:
        stratify: keep each label's share; without labels it has no meaning.
    """
    from sklearn.model_selection import train_test_split

    by = [str(label) for label in labels] if stratify and any(label is not None for label in labels) else None
    chosen, _ = train_test_split(np.arange(len(labels)), train_size=size, random_state=seed, stratify=by)
    return chosen
