"""Reproducible training of a diffusion model, on all samples or with some excluded.

All randomness of a sample (its position in the epoch, flip, timestep, noise, class dropout) is keyed
by (seed, epoch, sample id). Excluded samples are skipped, not replaced: the others stay in the same
batches, and each batch still divides by its nominal size. The optimiser is AdamW with ε inside the
root, which makes the step a smooth function of the gradients.
"""

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load_file, save
from torch import Tensor

from dtrak.config import TrainingConfig
from dtrak.execution.memory import with_smaller_batches
from dtrak.models.base import DiffusionModel, underflow_scale
from dtrak.models.lora import lora_folded
from dtrak.training.dropout import keyed_dropout
from dtrak.utils.files import write_bytes
from dtrak.utils.noise import keyed_generator


@dataclass(frozen=True)
class Progress:
    """Progress after a training step: steps done, total steps, and the step's unweighted mean loss."""

    step: int
    steps: int
    loss: float


def learning_rate(config: TrainingConfig, step: int, steps: int) -> float:
    """Linear warm-up, a constant phase, then cosine decay to ``final_learning_rate``."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    start = config.warmup + (steps - config.warmup) * config.constant
    if step < start:
        return config.learning_rate
    fraction = (step - start) / max(1, steps - start)
    final = config.final_learning_rate
    return final + (config.learning_rate - final) * 0.5 * (1 + math.cos(math.pi * fraction))


def average_decay(config: TrainingConfig, step: int) -> float:
    """The decay of the moving average at a step: less at the start."""
    return min(config.ema_decay, (1 + step) / (10 + step))


def epoch_order(seed: int, epoch: int, ids: Sequence[str]) -> np.ndarray:
    """Indices into ``ids`` in the order of one epoch: sorted by a random number keyed by each id."""
    keys = [keyed_generator("order", seed, i, epoch).random() for i in ids]
    return np.argsort(keys, kind="stable")


@dataclass
class Batch:
    """The samples of one step.

    Attributes:
        rows: their places among the training samples.
        keys: one per sample, for randomness inside the network (dropout).
    """

    x: Tensor
    timesteps: Tensor
    noise: Tensor
    condition: Tensor | None
    weights: Tensor
    keys: list[int]
    rows: list[int]

    def parts(self, size: int) -> Iterator["Batch"]:
        """The batch in parts of at most ``size`` samples."""
        if size >= len(self.x):
            yield self
            return
        for start in range(0, len(self.x), size):
            place = slice(start, start + size)
            told = None if self.condition is None else self.condition[place]
            yield Batch(
                self.x[place], self.timesteps[place], self.noise[place], told, self.weights[place], self.keys[place],
                self.rows[place],
            )  # fmt: skip


class KeyedBatches:
    """The batch of any step, with the keyed randomness described in the module's docstring.

    Args:
        inputs: from :meth:`dtrak.models.codec.Codec.training_inputs`, for all training images.
        ids: sample ids.
        names: label or prompt of each sample.
        weights: weight of each sample: 1, or 0 to exclude it.
    """

    def __init__(
        self,
        model: DiffusionModel,
        config: TrainingConfig,
        inputs: Float[Tensor, "n *kept"],
        ids: Sequence[str],
        names: Sequence[str | None],
        weights: Tensor,
    ):
        self._model, self._config = model, config
        self.inputs, self.ids, self.names, self._weights = inputs, ids, names, weights
        self.steps_per_epoch = -(-len(ids) // config.batch_size)
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0))

    def __call__(self, step: int) -> Batch:
        epoch, number = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            self._order = (epoch, epoch_order(self._config.seed, epoch, self.ids))
        size = self._config.batch_size
        chosen = self._order[1][number * size : (number + 1) * size]
        count = len(chosen)
        places = np.flatnonzero(self._weights[chosen].numpy() != 0)
        chosen = chosen[places]
        shape = self._model.latent_shape
        can_drop = self._model.conditioner.free_condition(1) is not None
        x, timesteps, noise, names, keys = [], [], [], [], []
        for place, i in zip(places.tolist(), chosen.tolist(), strict=True):
            random = keyed_generator("training", self._config.seed, self.ids[i], epoch)
            flip, drop = random.random(2)
            timesteps.append(self._timestep(random, place / count, count))
            noise.append(torch.from_numpy(random.standard_normal(shape, np.float32)))
            flipped = self._config.flip and bool(flip < 0.5)
            x.append(self._model.codec.training_input(self.inputs[i], flipped, random))
            names.append(None if can_drop and drop < self._config.class_dropout else self.names[i])
            keys.append(int(random.integers(2**63)))
        device, empty = self._model.device, torch.zeros(0, *shape)
        return Batch(
            (torch.stack(x) if x else empty).to(device),
            torch.tensor(timesteps, dtype=torch.long, device=device),
            (torch.stack(noise) if noise else empty).to(device),
            self._model.condition(names) if names else None,
            self._weights[chosen].to(device),
            keys,
            chosen.tolist(),
        )

    def _timestep(self, random: np.random.Generator, stratum: float, strata: int) -> int:
        if self._config.timestep_sampling == "stratified":
            return int((stratum + random.random() / strata) * self._model.num_timesteps)
        if self._config.timestep_sampling == "logit-normal":
            return int(self._model.num_timesteps / (1 + math.exp(-random.standard_normal())))
        return int(random.integers(self._model.num_timesteps))


class SmoothAdamW:
    """AdamW (Loshchilov & Hutter, ICLR 2019) with step ``m̂ / √(v̂ + ε²)``: differentiable in the gradient, even at 0."""

    def __init__(self, parameters: Sequence[Tensor], config: TrainingConfig):
        self.parameters, self.config = list(parameters), config
        self.first = [torch.zeros_like(p) for p in parameters]
        self.second = [torch.zeros_like(p) for p in parameters]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], step: int, rate: float) -> None:
        """Apply step number ``step`` (from 0) with learning rate ``rate``."""
        beta1, beta2 = self.config.betas
        gradients = list(gradients)
        torch._foreach_lerp_(self.first, gradients, 1 - beta1)
        torch._foreach_mul_(self.second, beta2)
        torch._foreach_addcmul_(self.second, gradients, gradients, 1 - beta2)
        corrected = torch._foreach_div(self.second, 1 - beta2 ** (step + 1))
        torch._foreach_add_(corrected, self.config.epsilon**2)
        torch._foreach_sqrt_(corrected)
        torch._foreach_mul_(self.parameters, 1 - rate * self.config.weight_decay)
        scale = -rate / (1 - beta1 ** (step + 1))
        torch._foreach_addcdiv_(self.parameters, self.first, corrected, scale)


def clipped(gradients: Sequence[Tensor], norm: float | None) -> Sequence[Tensor]:
    """Gradients scaled to a joint ℓ2 norm of at most ``norm``; unchanged for None."""
    if norm is None:
        return gradients
    total = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
    return torch._foreach_mul(list(gradients), (norm / (total + 1e-6)).clamp(max=1.0))


class Run:
    """A resumable training run.

    Args:
        inputs, ids, names: as in :class:`KeyedBatches`.
        folder: folder of ``state.safetensors`` and ``losses.jsonl``; None saves no state.
        weights: per-sample weights, default ones (see :class:`KeyedBatches`).
    """

    def __init__(
        self,
        model: DiffusionModel,
        config: TrainingConfig,
        inputs: Float[Tensor, "n *kept"],
        ids: Sequence[str],
        names: Sequence[str | None],
        folder: Path | None = None,
        weights: Tensor | None = None,
    ):
        self.model, self.config, self.folder = model, config, folder
        model.conditioner.prepare(names)
        weights = torch.ones(len(ids)) if weights is None else weights
        self.batches = KeyedBatches(model, config, inputs, ids, names, weights)
        self.steps = config.steps
        self.parameters = model.parameters()
        self.optimiser = SmoothAdamW(list(self.parameters.values()), config)
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.step, self._part = 0, config.batch_size
        self._losses: list[str] = []
        if folder and (folder / "state.safetensors").exists():
            self._load()

    def train(
        self,
        report: Callable[[Progress], None] = lambda progress: None,
        at_steps: Callable[[int], None] = lambda step: None,
    ) -> None:
        """Train to the last step.

        Args:
            report: called after each step; an exception from it stops the training.
            at_steps: called after each step with the number of steps done.

        Raises:
            DtrakError: memory is insufficient for a batch of one, or the state cannot be saved.
        """
        self.model.network.train()
        while self.step < self.steps:
            value = self._step()
            report(Progress(self.step, self.steps, value))
            if self.folder and (self.step % self.config.save_every == 0 or self.step == self.steps):
                self._save()
            at_steps(self.step)
        self.model.network.eval()

    def _step(self) -> float:
        gradients, errors = self.gradients(self.step)
        self.apply(clipped(gradients, self.config.clip), self.step)
        value = errors.mean().item() if len(errors) else math.nan
        self._losses.append(json.dumps({"step": self.step, "loss": round(value, 6)}))
        self.step += 1
        return value

    def apply(self, gradients: Sequence[Tensor], step: int) -> None:
        """Update parameters, moments and moving average by the gradients of step number ``step`` (from 0)."""
        config, parameters = self.config, list(self.parameters.values())
        self.optimiser.step(gradients, step, learning_rate(config, step, self.steps))
        decay = average_decay(config, step)
        torch._foreach_lerp_(list(self.average.values()), [p.detach() for p in parameters], 1 - decay)

    def gradients(self, step: int) -> tuple[list[Tensor], Tensor]:
        """The gradients of a step's objective before clipping, and each sample's unweighted loss."""
        batch = self.batches(step)
        if not len(batch.x):
            return [torch.zeros_like(p) for p in self.parameters.values()], torch.zeros(0)
        found, self._part = with_smaller_batches(lambda size: self._gradients(batch, size), self._part)
        return found

    def objective(self, part: Batch) -> tuple[Tensor, Tensor]:
        """The training objective of a part of a batch, and each sample's unweighted loss."""
        model, config = self.model, self.config
        autocast = torch.autocast(model.device.type, torch.bfloat16, enabled=config.precision == "bf16")
        dropout = keyed_dropout(model.network, config.dropout, config.dropout_modules, part.keys)
        with autocast, dropout, lora_folded(model.network):
            x_t = model.add_noise(part.x, part.noise, part.timesteps)
            prediction = model.predict(x_t, part.timesteps, part.condition)
        target = model.process.target(part.x, part.noise, part.timesteps)
        found = (prediction - target).square().flatten(1).mean(1)
        weights = part.weights * model.process.loss_weights(part.timesteps, config.min_snr_gamma)
        return (weights * found).sum() / config.batch_size, found

    def _gradients(self, batch: Batch, size: int) -> tuple[list[Tensor], Tensor]:
        model, parameters = self.model, list(self.parameters.values())
        sums: list[Tensor] = []
        errors = []
        for part in batch.parts(size):
            objective, found = self.objective(part)
            scale = underflow_scale(model, part.x[0].numel() * self.config.batch_size)
            gradients = torch.autograd.grad(objective * scale, parameters)
            if scale != 1:
                gradients = tuple(torch._foreach_div(list(gradients), scale))
            errors.append(found.detach())
            if sums:
                torch._foreach_add_(sums, list(gradients))
            else:
                sums = list(gradients)
        return sums, torch.cat(errors)

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Use the exponential moving average of the parameters within the block."""
        kept = {name: p.detach().clone() for name, p in self.parameters.items()}
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.copy_(self.average[name])
        self.model.network.eval()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, p in self.parameters.items():
                    p.copy_(kept[name])
            self.model.network.train()

    @torch.no_grad()
    def use_average(self) -> None:
        """Replace the parameters by their exponential moving average, at the end of training."""
        for name, p in self.parameters.items():
            p.copy_(self.average[name])
        self.model.network.eval()

    def _save(self) -> None:
        assert self.folder is not None
        state = {"step": torch.tensor(self.step)}
        for name, p, m, v in zip(
            self.parameters, self.optimiser.parameters, self.optimiser.first, self.optimiser.second, strict=True
        ):
            state |= {f"parameter/{name}": p.detach(), f"first/{name}": m, f"second/{name}": v}
            state[f"average/{name}"] = self.average[name]
        log = self.folder / "losses.jsonl"
        kept = log.read_text().splitlines()[: self.step - len(self._losses)] if log.exists() else []
        write_bytes(log, ("\n".join(kept + self._losses) + "\n").encode())
        write_bytes(self.folder / "state.safetensors", save({k: t.contiguous() for k, t in state.items()}))
        self._losses = []

    def _load(self) -> None:
        assert self.folder is not None
        state = load_file(self.folder / "state.safetensors")
        self.step = int(state["step"])
        with torch.no_grad():
            for i, (name, p) in enumerate(self.parameters.items()):
                p.copy_(state[f"parameter/{name}"])
                self.optimiser.first[i].copy_(state[f"first/{name}"])
                self.optimiser.second[i].copy_(state[f"second/{name}"])
                self.average[name].copy_(state[f"average/{name}"])
