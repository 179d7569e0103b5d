"""Keyed randomness: draws depend on the sample, never on its position in a batch.

The noise ε of ``x_t = √ᾱ_t x + √(1−ᾱ_t) ε`` is a function of (seed, sample id, timestep, draw)
alone, by the counter-based generator Philox (Salmon et al., SC 2011). So a feature is the same for
any batch size, order, shard, worker count or resume. Training draws its order, flips, timesteps
and noise in the same way, keyed by (seed, epoch, sample id).
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

NOISE_VERSION = 1  # part of every fingerprint: raise it whenever the streams below change


def keyed_generator(purpose: str, seed: int, key: str, *counters: float) -> np.random.Generator:
    """A generator that depends only on its arguments.

    Args:
        purpose: separates independent uses of one seed ("feature", "training", …).
        seed: the user's seed.
        key: usually a sample id.
        counters: up to two non-negative numbers below 2⁶⁴, such as timestep and draw; fractions are dropped.
    """
    name = f"{purpose}\0{seed}\0{key}".encode()
    philox_key = np.frombuffer(hashlib.blake2b(name, digest_size=16).digest(), dtype="<u8")
    counter = np.zeros(4, dtype=np.uint64)  # Philox itself advances the low words
    counter[2 : 2 + len(counters)] = counters
    return np.random.Generator(np.random.Philox(key=philox_key, counter=counter))


def feature_noise(
    seed: int, sample_id: str, pairs: Sequence[tuple[float, int]], shape: tuple[int, ...]
) -> Float32[np.ndarray, "pairs *shape"]:
    """Standard normal noise for one sample at several (timestep, draw) pairs."""
    rows = [keyed_generator("feature", seed, sample_id, *pair).standard_normal(shape, np.float32) for pair in pairs]
    return np.stack(rows)
