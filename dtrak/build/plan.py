"""What a study will take before it is built: parameters, operations, bytes, and time from both.

Operations are counted, not run: the network is built on PyTorch's meta device and one forward and one
backward pass are traced. Time is operations over a rate. The rate of a processor core was measured
(docs/scale.md); those of GPUs are their makers' peaks times ``UTILISATION``, an assumption.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from dtrak.config import FeatureConfig, Study
from dtrak.evaluation.subsets import MOST_HELDOUT
from dtrak.models.blank import new_network
from dtrak.study.folder import StudyFolder
from dtrak.utils.errors import DtrakError
from dtrak.utils.files import read_json

UTILISATION = 0.3
CORE = 30e9  # operations a second of one core in this project's training; see docs/scale.md
RATES = {"float32": {"A100": 156e12, "H100": 495e12}, "bfloat16": {"A100": 312e12, "H100": 989e12}}


@dataclass(frozen=True)
class Passes:
    """Operations (additions and multiplications) for one image at one timestep."""

    parameters: int
    tuned: int
    forward: float
    backward: float


@dataclass(frozen=True)
class Step:
    """One thing that a command does.

    Attributes:
        operations: in all.
        bytes: left on disk.
        spreads: whether several GPUs share it; one training does not spread.
    """

    title: str
    command: str
    operations: float
    bytes: float
    spreads: bool = True

    def seconds(self, device: "Device", study: Study) -> float:
        """Time on a device."""
        return self.operations / device.rate(study, self.spreads)


def count_passes(study: Study) -> Passes:
    """Trace one forward and one backward pass of the study's network.

    Raises:
        DtrakError: neither the study nor a model on this machine says how the network is built.
    """
    with torch.device("meta"):
        network, x, told = new_network(study)
        tuned = [p for p in network.parameters() if p.requires_grad]
        with FlopCounterMode(display=False) as forward:
            prediction = network(x, torch.zeros(1), **told).sample
        with FlopCounterMode(display=False) as backward:
            torch.autograd.grad(prediction.sum(), tuned, allow_unused=True)
    return Passes(
        sum(p.numel() for p in network.parameters()),
        sum(p.numel() for p in tuned),
        forward.get_total_flops(),
        backward.get_total_flops(),
    )


def plan(study: Study, images: int, heldout: int, subsets: int = 64, seeds: int = 3) -> tuple[Passes, list[Step]]:
    """The steps of building and judging a study.

    Args:
        images: in the training set.
        heldout: images held out of it.
        subsets, seeds: of the ground truth.
    """
    passes, recipe, name = count_passes(study), study.training, study.name
    full = passes.forward + passes.backward
    training = recipe.steps * recipe.batch_size * full
    queries = study.truth.generated + min(MOST_HELDOUT, heldout)
    asked = queries * study.truth.timesteps * study.truth.draws * passes.forward
    weights = 4 * (passes.tuned if recipe.method == "lora" else passes.parameters) / 2

    def features(sets: tuple[FeatureConfig, ...], images: int = images) -> tuple[float, float]:
        looks = {(c.timesteps, c.strategy, c.first_draw, c.noise_draws, c.noise_seed, c.model, c.split) for c in sets}
        operations = sum(images * look[0] * look[3] * passes.forward for look in looks)
        operations += sum(images * len(c.pairs()) * passes.backward for c in sets)
        size = sum(images * (len(c.pairs()) if c.apart else 1) * c.projection_dim * _width(c) for c in sets)
        return operations, size

    train_sets = tuple(c for c in study.ablations if c.split == "train")
    (index_ops, index_bytes), (more_ops, more_bytes) = features(study.features), features(train_sets)
    asked_ops, asked_bytes = features(study.features + train_sets, queries)
    command = "python -m index_builder"
    steps = [
        Step("train the model", f"{command} train {name}", training, weights * len(recipe.checkpoints), False),
        Step("features and index", f"{command} build {name} --index-only", index_ops, 3 * index_bytes),
        Step("features of the ablations", f"{command} build {name}", more_ops, more_bytes),
        Step(
            f"ground truth, {subsets} halves × {seeds} seeds",
            f"{command} retrain {name} --subsets {subsets} --seeds {seeds}",
            subsets * seeds * (training / 2 + asked),
            subsets * seeds * 12.0 * queries,
        ),
        Step("features of the queries", f"{command} evaluate {name}", asked_ops, asked_bytes),
    ]
    trained = study.model.adapter or (study.model.path and recipe.method != "lora" and not study.model.unet)
    return passes, steps[1:] if trained else steps


def _width(config: FeatureConfig) -> int:
    return 4 if config.dtype == "float32" else 2


@dataclass(frozen=True)
class Device:
    """What computes: ``count`` cores ("core") or GPUs ("A100", "H100")."""

    kind: str
    count: int

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.count} {self.kind}" + ("s" if self.count > 1 else "")

    def rate(self, study: Study, spreads: bool = True) -> float:
        """Operations a second; of one GPU alone where the work does not spread.

        With frozen weights in half precision it computes at that precision's rate.
        """
        if self.kind == "core":
            return CORE * self.count
        half = study.model.dtype != "float32" or study.training.precision == "bf16"
        return RATES["bfloat16" if half else "float32"][self.kind] * UTILISATION * (self.count if spreads else 1)


DEVICES = (Device("core", 2), Device("A100", 1), Device("H100", 1), Device("A100", 8), Device("H100", 8))


@dataclass(frozen=True)
class Estimate:
    """What a study will take."""

    study: Study
    images: int
    passes: Passes
    steps: list[Step]

    def as_dict(self) -> dict[str, Any]:
        """As JSON carries it; seconds by device."""
        steps = [
            {**asdict(step), "seconds": {d.title: step.seconds(d, self.study) for d in DEVICES}} for step in self.steps
        ]
        return {"study": self.study.name, "images": self.images, "passes": asdict(self.passes), "steps": steps}


def estimate(folder: StudyFolder, images: int | None = None) -> Estimate:
    """What a study will take, for the images that are prepared, or drawn, or ``images``.

    Raises:
        DtrakError: nobody knows how many images there will be.
    """
    study = folder.study
    data, report = study.data, folder.data / "report.json"
    counted = read_json(report) if report.exists() else {}
    known = images or counted.get("train") or data.train_size
    if known is None:
        raise DtrakError(
            f"How many images '{study.name}' has is known once they are prepared.",
            hint=f"python -m index_builder prepare {study.name}, or plan --images N.",
        )
    share = round(known * data.holdout / (1 - data.holdout))
    heldout = counted.get("heldout", data.heldout_size if data.heldout_split else share)
    return Estimate(study, known, *plan(study, known, heldout or 0))
