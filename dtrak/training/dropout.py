"""Dropout with masks keyed by sample, as all randomness in training is (see :mod:`dtrak.training.loop`)."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


class KeyedDropout(torch.nn.Module):
    """Dropout with probability p; row i of a batch draws its masks from generator i, layer by layer."""

    def __init__(self, p: float, generators: Sequence[torch.Generator]):
        super().__init__()
        self.p, self.generators = p, generators

    def forward(self, x: Tensor) -> Tensor:
        rows = [torch.rand(x.shape[1:], generator=g, device=x.device, dtype=torch.float32) for g in self.generators]
        return x * (torch.stack(rows) >= self.p).to(x.dtype) / (1 - self.p)


@contextlib.contextmanager
def keyed_dropout(network: torch.nn.Module, p: float, within: str, keys: Sequence[int]) -> Iterator[None]:
    """Apply keyed dropout in the network's dropout layers within the block, for one pass over one batch.

    Args:
        p: dropout probability; 0 leaves the network unchanged.
        within: only layers whose name contains this.
        keys: one key per sample of the batch.
    """
    if not p:
        yield
        return
    device = next(network.parameters()).device
    generators = [torch.Generator(device).manual_seed(key) for key in keys]
    layers = {n: m for n, m in network.named_modules() if isinstance(m, torch.nn.Dropout) and within in n}
    for name in layers:
        _put(network, name, KeyedDropout(p, generators))
    try:
        yield
    finally:
        for name, layer in layers.items():
            _put(network, name, layer)


def _put(network: torch.nn.Module, name: str, layer: torch.nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(network.get_submodule(parent), last, layer)
