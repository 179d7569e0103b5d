"""``python -m benchmarks.gpu``: features on a GPU at the paper's sizes, vs a plain forward and backward pass."""

import functools
import json
import time
from collections.abc import Callable

import torch

from benchmarks.features import DIM, Captioned
from dtrak.config import FeatureConfig, load_study
from dtrak.gradients.extractor import FeatureExtractor
from dtrak.models.blank import new_network
from dtrak.models.pixel import PixelModel, new_scheduler


def seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """Median wall time of synchronised calls, after two warm-up calls."""
    found = []
    for _ in range(repeats + 2):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return sorted(found[2:])[repeats // 2]


def measure(study_name: str, timesteps: int) -> dict[str, object]:
    """Milliseconds and peak memory of one image's feature, and milliseconds of its floor (a plain pass)."""
    study = load_study(study_name)
    blank = new_network(study)
    make = Captioned if study.model.kind == "text-to-image" else PixelModel
    model = make(blank.network, new_scheduler(), study.resolution).to("cuda")
    x = torch.randn_like(blank.x[0], device="cuda")
    parameters = list(model.parameters().values())
    steps = torch.arange(0, 1000, 1000 // timesteps, device="cuda")
    batch, noise = x.expand(len(steps), *x.shape), torch.randn(len(steps), *x.shape, device="cuda")
    label = model.names[0] if model.names else None
    condition = model.condition([label] * len(steps))

    def floor() -> object:
        prediction = model.predict(model.add_noise(batch, noise, steps), steps, condition)
        return torch.autograd.grad((prediction - noise).square().mean(), parameters)

    row: dict[str, object] = {"study": study_name, "timesteps": timesteps, "tuned": sum(p.numel() for p in parameters)}
    row["floor_ms"] = round(1e3 * seconds(floor), 2)
    for outputs in (("mean-squared-l2-norm",), ("mean-squared-l2-norm", "loss")):
        configs = [FeatureConfig(output=o, timesteps=timesteps, projection_dim=DIM) for o in outputs]
        extractor = FeatureExtractor(model, configs)
        torch.cuda.reset_peak_memory_stats()
        row[f"feature{len(outputs)}_ms"] = round(1e3 * seconds(functools.partial(extractor, x, "a", label)), 2)
        row[f"feature{len(outputs)}_peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    return row


def main() -> None:
    """Print one JSON line per study and precision."""
    for tf32 in (False, True):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        for study, timesteps in (("cifar2", 10), ("cifar2", 100), ("artbench2", 10)):
            print(
                json.dumps({"device": torch.cuda.get_device_name(), "tf32": tf32, **measure(study, timesteps)}),
                flush=True,
            )


if __name__ == "__main__":
    main()
