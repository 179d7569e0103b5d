"""Cost estimates before a study is built: parameters, operations, bytes and time.

Operations are counted without running them: the network is built on PyTorch's meta device, and one forward
and one backward pass are traced. Time is operations divided by a rate. The rate of a processor core was
measured (docs/scale.md); GPU rates are the vendors' peak rates times ``UTILISATION``, an assumption.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from dtrak.build.memory import Memory, bytes_beside, estimate_memory
from dtrak.config import FeatureConfig, Study
from dtrak.evaluation.subsets import MOST_HELDOUT
from dtrak.models.blank import local_base, new_network
from dtrak.models.families.base import Blank
from dtrak.study.folder import StudyFolder
from dtrak.utils.errors import DtrakError
from dtrak.utils.files import read_note

UTILISATION = 0.3
CORE = 30e9  # operations per second of one core in training, measured; see docs/scale.md
RATES = {"float32": {"A100": 156e12, "H100": 495e12}, "bfloat16": {"A100": 312e12, "H100": 989e12}}


@dataclass(frozen=True)
class Passes:
    """The cost of one image at one timestep.

    Attributes:
        parameters: number of weights.
        tuned: number of weights with gradients.
        forward, backward: operations (additions and multiplications).
        memory: on a GPU.
    """

    parameters: int
    tuned: int
    forward: float
    backward: float
    memory: Memory


@dataclass(frozen=True)
class Step:
    """One step of building and evaluating a study.

    Attributes:
        command: the command line that runs it.
        operations: total operations.
        bytes: disk space of the result.
        spreads: whether it runs on several GPUs; a single training does not.
    """

    title: str
    command: str
    operations: float
    bytes: float
    spreads: bool = True

    def seconds(self, device: "Device", study: Study) -> float:
        """Estimated time on a device."""
        return self.operations / device.rate(study, self.spreads)


def count_passes(study: Study) -> Passes:
    """Trace one forward and one backward pass of the study's network.

    Raises:
        DtrakError: neither the study nor a local model gives the network's architecture.
    """
    width = 4 if study.model.dtype == "float32" else 2
    with torch.device("meta"):
        blank = new_network(study)
        passes = passes_of(blank, width)
    if study.model.quantise:
        saved = (width - 1) * quantised_numbers(blank.network)
        passes = replace(passes, memory=replace(passes.memory, weights=passes.memory.weights - saved))
    if study.model.kind != "text-to-image":
        return replace(passes, memory=replace(passes.memory, checkpointed=None, beside=0.0))
    if study.model.gradient_checkpointing:  # each backward pass begins with another forward pass
        passes = replace(passes, backward=passes.backward + passes.forward)
    path = local_base(study)
    return replace(passes, memory=replace(passes.memory, beside=bytes_beside(path, width))) if path else passes


def quantised_numbers(network: torch.nn.Module) -> int:
    """Weights that quantisation keeps in 8 bits: the frozen matrices of linear layers."""
    layers = (layer for layer in network.modules() if isinstance(layer, torch.nn.Linear))
    return sum(layer.weight.numel() for layer in layers if not layer.weight.requires_grad)


def passes_of(blank: Blank, width: int) -> Passes:
    """Trace one forward and one backward pass of a network on PyTorch's meta device.

    Args:
        width: bytes of a frozen weight.
    """
    with torch.device("meta"):
        tuned = [p for p in blank.network.parameters() if p.requires_grad]
        with FlopCounterMode(display=False) as forward:
            prediction = blank.call()
        with FlopCounterMode(display=False) as backward:
            torch.autograd.grad(prediction.sum(), tuned, allow_unused=True)
        memory = estimate_memory(blank, width)
    return Passes(
        sum(p.numel() for p in blank.network.parameters()),
        sum(p.numel() for p in tuned),
        forward.get_total_flops(),
        backward.get_total_flops(),
        memory,
    )


def plan(study: Study, images: int, heldout: int, subsets: int = 64, seeds: int = 3) -> tuple[Passes, list[Step]]:
    """The steps of building and evaluating a study.

    Args:
        images: number of training images.
        heldout: number of held-out images.
        subsets, seeds: number of subsets and of trainings per subset.

    Raises:
        DtrakError: the architecture of the network is not known on this machine.
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

    unrelated = study.unrelated.drawings + 3 * study.unrelated.count
    (index_ops, index_bytes), (more_ops, more_bytes) = features(study.features), features(study.ablations)
    asked_ops, asked_bytes = features(study.feature_sets, queries)
    null_ops, null_bytes = features(study.features, unrelated)
    command = "python -m index_builder"
    steps = [
        Step("train the model", f"{command} train {name}", training, weights * len(recipe.checkpoints), False),
        Step("features and index", f"{command} build {name} --index-only", index_ops, 3 * index_bytes),
        Step(
            "significance test and ablations", f"{command} build {name}", more_ops + null_ops, more_bytes + null_bytes
        ),
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
    """Hardware: ``count`` cores ("core") or GPUs ("A100", "H100")."""

    kind: str
    count: int

    @property
    def title(self) -> str:
        """Display name."""
        return f"{self.count} {self.kind}" + ("s" if self.count > 1 else "")

    def rate(self, study: Study, spreads: bool = True) -> float:
        """Operations per second, of a single GPU if the work does not spread.

        GPUs run at the half-precision rate if the study uses half-precision weights or training.
        """
        if self.kind == "core":
            return CORE * self.count
        half = study.model.dtype != "float32" or study.training.precision == "bf16"
        return RATES["bfloat16" if half else "float32"][self.kind] * UTILISATION * (self.count if spreads else 1)


DEVICES = (Device("core", 2), Device("A100", 1), Device("H100", 1), Device("A100", 8), Device("H100", 8))


@dataclass(frozen=True)
class Estimate:
    """The estimated cost of a study."""

    study: Study
    images: int
    passes: Passes
    steps: list[Step]

    def as_dict(self) -> dict[str, Any]:
        """As JSON-serialisable data, with seconds by device."""
        steps = [
            {**asdict(step), "seconds": {d.title: step.seconds(d, self.study) for d in DEVICES}} for step in self.steps
        ]
        return {"study": self.study.name, "images": self.images, "passes": asdict(self.passes), "steps": steps}


def estimate(folder: StudyFolder, images: int | None = None) -> Estimate:
    """Estimate the cost of a study.

    Args:
        images: number of training images; default the prepared ones, else ``data.train_size``.

    Raises:
        DtrakError: the number of images or the network's architecture is not known.
    """
    study = folder.study
    data, report = study.data, folder.data / "report.json"
    counted = read_note(report)
    known = images or counted.get("train") or data.train_size
    if known is None:
        raise DtrakError(
            f"The number of images of '{study.name}' is not known before they are prepared.",
            hint=f"Run python -m index_builder prepare {study.name}, or plan with --images N.",
        )
    share = round(known * data.holdout / (1 - data.holdout))
    heldout = counted.get("heldout", data.heldout_size if data.heldout_split else share)
    return Estimate(study, known, *plan(study, known, heldout or 0))
