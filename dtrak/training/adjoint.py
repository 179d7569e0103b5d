"""The exact first-order influence of training samples: differentiation through the training.

Training is a chain of differentiable steps. With ``w_n`` the weight of sample n, the derivative of a query's loss
``∂L(x; θ_T(w)) / ∂w_n`` at w = 1 is its exact first-order influence (MAGIC; Ilyas & Engstrom, 2025, arXiv
2504.16430). It is found by walking the steps backwards with an adjoint of the state (θ, m, v, moving average) for
each query. A step of :class:`dtrak.training.loop.SmoothAdamW`,

    g = ∇_θ (1/B) Σ_n w_n ℓ_n(θ),   m' = β₁ m + (1−β₁) g,   v' = β₂ v + (1−β₂) g²,
    θ' = (1−ηω) θ − (η/c₁) m' / D,   D = √(v'/c₂ + ε²),      e' = d e + (1−d) θ',

is transposed by hand but for the product of g's Jacobian with the cotangent u of g, which autograd takes: its part
for θ is a Hessian-vector product, its part for w_n is ⟨∇_θ ℓ_n / B, u⟩.

The training is run forward once, keeping every √T-th state. Each stretch between two states is then run again,
keeping every state of the stretch, and walked backwards. With a folder, kept states and adjoints are files, and a
replay that was killed goes on from there.

The derivative says what a small change of a weight does. Where the adjoint grows over the replay, the training is
not smooth, and the derivative says nothing about removing a sample: see :attr:`Replay.growth`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dtrak.execution.memory import with_smaller_batches
from dtrak.training.loop import Batch, Run, average_decay, clipped, learning_rate
from dtrak.utils.errors import DtrakError
from dtrak.utils.files import write_bytes

Vector = list[Tensor]  # one tensor per tuned parameter


@dataclass
class State:
    """Parameters, first and second moments, and moving average before a step."""

    theta: Vector
    first: Vector
    second: Vector
    average: Vector

    def flat(self) -> dict[str, Tensor]:
        """As named tensors."""
        parts = {"theta": self.theta, "first": self.first, "second": self.second, "average": self.average}
        return {f"{part}/{i}": tensor for part, tensors in parts.items() for i, tensor in enumerate(tensors)}

    @classmethod
    def of(cls, flat: dict[str, Tensor], count: int) -> "State":
        """The inverse of :meth:`flat`."""
        return cls(*([flat[f"{part}/{i}"] for i in range(count)] for part in ("theta", "first", "second", "average")))


class Replay:
    """A training that is differentiated by walking it backwards.

    Args:
        run: a training at its first step. Its ``weights`` are where the derivative is taken; samples of weight 0 are
            left out and have influence 0.
        folder: where states and adjoints are kept; None keeps them in memory.

    Raises:
        DtrakError: the recipe trains in bfloat16, or the run has already begun.
    """

    def __init__(self, run: Run, folder: Path | None = None):
        if run.config.precision == "bf16":
            raise DtrakError(
                "The derivative of a training in bfloat16 is noise.", hint="Set training.precision: fp32 and retrain."
            )
        if run.step:
            raise DtrakError("The training has already begun.", hint="Start from a new run.")
        self.run, self.folder, self.steps = run, folder, run.steps
        self.stretch = max(1, math.isqrt(run.steps))
        self.growth: list[float] = []
        self._parameters = list(run.parameters.values())
        self._adjoint = None if folder is None else folder / "adjoint.safetensors"
        self._kept: dict[int, State] = {}

    @property
    def work(self) -> int:
        """The number of steps of a whole replay: forward, forward again, and backward."""
        return 3 * self.steps

    def forward(self, report: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Run the training, keeping every √T-th state; the model then has the weights after training.

        It begins at the last state that a killed replay kept.

        Args:
            report: called with (steps done, :attr:`work`).
        """
        run = self.run
        if self.folder and (kept := sorted(self.folder.glob("state-*.safetensors"))):
            run.step = int(kept[-1].stem.removeprefix("state-"))
            self._restore(run.step)
        run.model.network.train()
        while run.step < self.steps:
            if run.step % self.stretch == 0:
                self._keep(run.step, self._state())
            run._step()
            report(run.step, self.work)
        run.use_average()

    def influences(
        self,
        losses: Sequence[Callable[[], Tensor]],
        report: Callable[[int, int], None] = lambda done, total: None,
    ) -> Float[Tensor, "queries n"]:
        """``∂L / ∂w_n`` for some queries; :meth:`forward` runs first if it has not.

        Args:
            losses: each returns a query's loss under the weights that the model then has, as a differentiable scalar.
            report: called with (steps done, :attr:`work`).

        Raises:
            DtrakError: an adjoint is no longer finite.
        """
        run = self.run
        if run.step < self.steps and not (self._adjoint and self._adjoint.exists()):
            self.forward(report)
        adjoints, found, step = self._begin(losses)
        done = self.steps + 2 * (self.steps - step)
        while step:
            start = (step - 1) // self.stretch * self.stretch
            states, gradients = [], []
            self._restore(start)
            run.model.network.train()
            for number in range(start, step):
                states.append(self._state())
                gradients.append(self._plain_gradient(number))
                self._advance(gradients[-1], number)
                done += 1
                report(done, self.work)
            for number in range(step - 1, start - 1, -1):
                after = states[number - start + 1] if number + 1 < step else self._state()
                self._back(number, states[number - start], after, gradients[number - start], adjoints, found)
                done += 1
                report(done, self.work)
            step = start
            self.growth.append(self._norm(adjoints))
            if not math.isfinite(self.growth[-1]):
                raise DtrakError(
                    f"The adjoint is no longer finite {self.steps - step} steps before the end: this training is too "
                    "rough to be differentiated.",
                    hint="Train with larger batches, a lower rate or a larger epsilon; or use another method.",
                )
            self._save(step, adjoints, found)
        self._restore(0)
        return found

    def _begin(self, losses: Sequence[Callable[[], Tensor]]) -> tuple[list[State], Tensor, int]:
        count = len(self._parameters)
        if self._adjoint and self._adjoint.exists():
            flat = load_file(self._adjoint)
            self.growth = flat["growth"].tolist()
            mine = [{k.split("|")[1]: v for k, v in flat.items() if k.startswith(f"{q}|")} for q in range(len(losses))]
            return [State.of(part, count) for part in mine], flat["found"], int(flat["step"])
        run, adjoints = self.run, []
        run.use_average()
        for loss in losses:
            with sdpa_kernel(SDPBackend.MATH):
                slope = torch.autograd.grad(loss(), self._parameters)
            zeros = [[torch.zeros_like(p) for p in self._parameters] for _ in range(3)]
            adjoints.append(State(zeros[0], zeros[1], zeros[2], [s.detach().clone() for s in slope]))
        self.growth = [self._norm(adjoints)]
        found = torch.zeros(len(losses), len(run.batches.ids), dtype=self._parameters[0].dtype)
        return adjoints, found, self.steps

    def _back(self, number: int, before: State, after: State, g: Vector, adjoints: list[State], found: Tensor) -> None:
        """Take the adjoints from after a step to before it, and add the step's influences."""
        config = self.run.config
        beta1, beta2 = config.betas
        rate = learning_rate(config, number, self.steps)
        decay = average_decay(config, number)
        one, two = 1 - beta1 ** (number + 1), 1 - beta2 ** (number + 1)
        cotangents = []
        for a in adjoints:
            u = []
            for i in range(len(g)):
                theta = a.theta[i] + (1 - decay) * a.average[i]
                root = (after.second[i] / two + config.epsilon**2).sqrt()
                first = a.first[i] - (rate / one) * theta / root
                second = a.second[i] + rate * theta * (after.first[i] / one) / (2 * two * root**3)
                u.append((1 - beta1) * first + 2 * (1 - beta2) * g[i] * second)
                a.theta[i] = (1 - rate * config.weight_decay) * theta
                a.first[i], a.second[i], a.average[i] = beta1 * first, beta2 * second, decay * a.average[i]
            cotangents.append(u)
        self._set(before)
        batch = self.run.batches(number)
        if not len(batch.x):
            return
        cotangents = self._unclipped(number, cotangents)

        def products(size: int) -> list[tuple[Vector, Tensor]]:
            totals: list[tuple[Vector, Vector]]
            totals = [([torch.zeros_like(p) for p in self._parameters], []) for _ in adjoints]
            for part in batch.parts(size):
                part.weights = part.weights.detach().clone().requires_grad_()
                with sdpa_kernel(SDPBackend.MATH):
                    slope = self._slope(part)
                    for (total, by_sample), u in zip(totals, cotangents, strict=True):
                        *second, weights = torch.autograd.grad(
                            slope, [*self._parameters, part.weights], u, retain_graph=True, allow_unused=True
                        )
                        for place, value in enumerate(second):
                            if value is not None:
                                total[place] += value
                        by_sample.append(torch.zeros_like(part.weights) if weights is None else weights)
                del slope
            return [(total, torch.cat(by_sample)) for total, by_sample in totals]

        parts, self.run._part = with_smaller_batches(products, self.run._part)
        for row, (a, (hessian, by_sample)) in enumerate(zip(adjoints, parts, strict=True)):
            for i, value in enumerate(hessian):
                a.theta[i] = a.theta[i] + value
            found[row, batch.rows] += by_sample.to(found)

    def _slope(self, part: Batch) -> Vector:
        """The gradient of the batch part's objective, itself differentiable in the parameters and sample weights."""
        objective, _ = self.run.objective(part)
        found = torch.autograd.grad(objective, self._parameters, create_graph=True, allow_unused=True)
        return [torch.zeros_like(p) if s is None else s for p, s in zip(self._parameters, found, strict=True)]

    def _unclipped(self, number: int, cotangents: list[Vector]) -> list[Vector]:
        """The cotangents before clipping: the transpose of ``g ↦ g · min(1, c / (‖g‖ + δ))``."""
        limit = self.run.config.clip
        if limit is None:
            return cotangents
        raw, _ = self.run.gradients(number)
        norm = torch.sqrt(torch.stack([(g**2).sum() for g in raw]).sum())
        scale = limit / (norm + 1e-6)
        if scale >= 1:
            return cotangents
        found = []
        for u in cotangents:
            along = torch.stack([(a * b).sum() for a, b in zip(raw, u, strict=True)]).sum()
            found.append([
                scale * b - a * (scale * along / (norm * (norm + 1e-6))) for a, b in zip(raw, u, strict=True)
            ])  # fmt: skip
        return found

    def _plain_gradient(self, number: int) -> Vector:
        return [g.detach() for g in clipped(self.run.gradients(number)[0], self.run.config.clip)]

    def _advance(self, gradient: Vector, number: int) -> None:
        self.run.apply(gradient, number)

    def _state(self) -> State:
        run = self.run
        return State(
            [p.detach().clone() for p in self._parameters],
            [t.clone() for t in run.optimiser.first],
            [t.clone() for t in run.optimiser.second],
            [run.average[name].clone() for name in run.parameters],
        )

    @torch.no_grad()
    def _set(self, state: State) -> None:
        run = self.run
        for i, name in enumerate(run.parameters):
            self._parameters[i].copy_(state.theta[i])
            run.optimiser.first[i].copy_(state.first[i])
            run.optimiser.second[i].copy_(state.second[i])
            run.average[name].copy_(state.average[i])

    def _keep(self, step: int, state: State) -> None:
        if self.folder is None:
            self._kept[step] = state
        else:
            flat = {name: tensor.contiguous() for name, tensor in state.flat().items()}
            write_bytes(self.folder / f"state-{step:06d}.safetensors", save(flat))

    def _restore(self, step: int) -> None:
        if self.folder is None:
            self._set(self._kept[step])
        else:
            self._set(State.of(load_file(self.folder / f"state-{step:06d}.safetensors"), len(self._parameters)))

    def _save(self, step: int, adjoints: list[State], found: Tensor) -> None:
        if self._adjoint is None:
            return
        flat = {f"{q}|{name}": t.contiguous() for q, a in enumerate(adjoints) for name, t in a.flat().items()}
        flat |= {"found": found, "step": torch.tensor(step), "growth": torch.tensor(self.growth)}
        write_bytes(self._adjoint, save(flat))

    @staticmethod
    def _norm(adjoints: list[State]) -> float:
        """The largest norm over queries of the adjoint of θ (at the end: of the weights used)."""
        parts = [[*a.theta, *a.average] for a in adjoints]
        return max(float(torch.stack([(t.double() ** 2).sum() for t in part]).sum().sqrt()) for part in parts)
