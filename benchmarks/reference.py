"""The reference recipe: ``vmap(grad)`` over a batch of samples and TRAK's dense CPU projector."""

import time

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import Tensor
from torch.func import functional_call, grad, vmap

from dtrak.models.base import DiffusionModel


def reference_seconds_per_sample(
    model: DiffusionModel, x: Tensor, label: str | None, timesteps: int, projection_dim: int, batch_size: int
) -> tuple[float, float]:
    """Seconds per sample for mean gradients over ``timesteps``, and for their projection by ``traker``.

    The projector regenerates its matrix at each call, so the cost per sample decreases with the batch size.
    """
    from trak.projectors import BasicProjector, ProjectionType

    for module in model.network.modules():
        if isinstance(module, Attention):
            module.set_processor(AttnProcessor())  # fused attention has no batching rule under vmap
    trained = {n: p.detach() for n, p in model.network.named_parameters() if p.requires_grad}
    frozen = {n: p.detach() for n, p in model.network.named_parameters() if not p.requires_grad}
    frozen |= dict(model.network.named_buffers())

    keywords = model.conditioner.told(model.condition([label]))

    def objective(parameters: dict[str, Tensor], x_t: Tensor, t: Tensor) -> Tensor:
        arguments = (x_t[None], t[None])
        prediction = functional_call(model.network, (parameters, frozen), arguments, keywords).sample
        return prediction.square().mean()

    per_sample = vmap(grad(objective), in_dims=(None, 0, 0))
    batch = x.expand(batch_size, *x.shape)

    start = time.perf_counter()
    total = torch.zeros(batch_size, sum(p.numel() for p in trained.values()))
    for t in range(0, 1000, 1000 // timesteps):
        steps = torch.full((batch_size,), t)
        noisy = model.add_noise(batch, torch.randn(batch.shape), steps)
        gradients = per_sample(trained, noisy, steps)
        total += torch.cat([gradients[n].flatten(1) for n in trained], dim=1)
    features = (time.perf_counter() - start) / batch_size

    dimension = total.shape[1]
    projector = BasicProjector(dimension, projection_dim, seed=0, proj_type=ProjectionType.normal, device="cpu")
    start = time.perf_counter()
    projector.project(total, model_id=0)
    return features, (time.perf_counter() - start) / batch_size
