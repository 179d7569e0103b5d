"""Fewer columns from a stored projection. This module does not import torch."""

import numpy as np
from jaxtyping import Float

from dtrak.config import ProjectionKind


def narrowed(
    rows: Float[np.ndarray, "*n k"], dim: int, projection: ProjectionKind = "sparse"
) -> Float[np.ndarray, "*n d"]:
    """Projected vectors projected further, to ``dim`` columns; inner products are preserved in expectation.

    The buckets of a count sketch are folded: every coordinate stays, in bucket j mod ``dim``. Of a dense projection
    the first columns are independent of the others, so they are taken and rescaled.
    """
    width = rows.shape[-1]
    if dim == width:
        return rows
    if projection != "sparse":
        return rows[..., :dim] * np.asarray(np.sqrt(width / dim), rows.dtype)
    padded = np.zeros((*rows.shape[:-1], -(-width // dim) * dim), rows.dtype)
    padded[..., :width] = rows
    return padded.reshape(*rows.shape[:-1], -1, dim).sum(-2)
