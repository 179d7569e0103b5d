"""The training loop of the demo's base: AdamW, a moving average of the weights, and a state on disk."""

import copy
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

SAVE_EVERY = 60  # seconds
MEASURED, WARM_UP = 40, 10  # steps whose speed sets the number of steps, and those of them that do not count


@dataclass(frozen=True)
class Schedule:
    """How one part is trained: batch size, peak learning rate, decay of the moving average, and steps."""

    batch: int
    rate: float
    decay: float
    steps: int

    def rate_at(self, step: int) -> float:
        """Linear warm-up over 200 steps, then a cosine to 0."""
        return self.rate * min((step + 1) / 200, 0.5 * (1 + math.cos(math.pi * step / self.steps)))


class Training:
    """AdamW with a moving average of the weights, a log line every 200 steps, and a state on disk.

    Args:
        modules: what is trained.
        objective: the loss of one batch, drawn with the generator.
    """

    def __init__(
        self,
        modules: dict[str, nn.Module],
        objective: Callable[[int, torch.Generator], Tensor],
        schedule: Schedule,
        device: torch.device,
        state: Path,
    ):
        self.modules = nn.ModuleDict(modules)
        self.average = copy.deepcopy(self.modules).requires_grad_(False)
        self.objective, self.schedule, self.device, self.state = objective, schedule, device, state
        fused = device.type == "cuda"
        self.optimiser = torch.optim.AdamW(
            self.modules.parameters(), schedule.rate, betas=(0.9, 0.99), weight_decay=1e-3, fused=fused
        )
        self.step = 0

    def run(self, seconds: float) -> nn.ModuleDict:
        """Train to the last step; returns the averaged modules.

        Args:
            seconds: computing time at the speed of the first steps, which sets the number of steps; 0 keeps it.
        """
        if self.state.exists():
            self._load()
        saved = start = time.monotonic()
        first, losses, took = self.step, [], list[float]()
        while self.step < self.schedule.steps:
            if seconds and self.step == first + MEASURED:
                per_step = statistics.median(took[WARM_UP:])  # a pause of the machine does not count
                steps = self.step + max(1, int((seconds - MEASURED * per_step) / per_step))
                self.schedule = replace(self.schedule, steps=steps)
                print(f"  {1000 * per_step:.1f} ms a step: {steps} steps", flush=True)
            before = time.monotonic()
            losses.append(self._step())
            if len(took) < MEASURED:
                self._sync()
                took.append(time.monotonic() - before)
            if self.step % 200 == 0:
                value = torch.stack(losses).mean().item()
                print(f"  step {self.step} loss {value:.5f} {time.monotonic() - start:.0f} s", flush=True)
                losses = []
            if time.monotonic() - saved > SAVE_EVERY:
                self._save()
                saved = time.monotonic()
        self._save()
        return self.average.eval()

    def _step(self) -> Tensor:
        random = torch.Generator(self.device).manual_seed(self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = self.schedule.rate_at(self.step)
        loss = self.objective(self.schedule.batch, random)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        decay = min(self.schedule.decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.modules.parameters()), 1 - decay)
        return loss.detach()

    def _sync(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _save(self) -> None:
        content = {
            "modules": self.modules.state_dict(), "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(), "step": self.step, "steps": self.schedule.steps,
        }  # fmt: skip
        part = self.state.with_suffix(".part")
        torch.save(content, part)
        part.replace(self.state)

    def _load(self) -> None:
        content = torch.load(self.state, map_location=self.device, weights_only=True)
        self.modules.load_state_dict(content["modules"])
        self.average.load_state_dict(content["average"])
        self.optimiser.load_state_dict(content["optimiser"])
        self.step, steps = content["step"], content["steps"]
        self.schedule = replace(self.schedule, steps=steps)
