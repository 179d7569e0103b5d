"""Prove on a bare machine with an NVIDIA GPU what can otherwise only be estimated, within ten minutes.

    python scripts/prove_gpu.py [--seconds 570] [--out gpu.json]

Steps run in the order of their worth. Each result is written at once: a run that is stopped goes on from there, and
docs/gpu.md's table is rewritten after each step. Without a GPU the script runs its steps on the processor, tiny, as a
test of itself, and leaves the document alone.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.features import Captioned  # noqa: E402
from dtrak.build.plan import count_passes  # noqa: E402
from dtrak.config import FeatureConfig, TrainingConfig, load_study  # noqa: E402
from dtrak.gradients.extractor import FeatureExtractor  # noqa: E402
from dtrak.models.base import DiffusionModel  # noqa: E402
from dtrak.models.blank import new_network  # noqa: E402
from dtrak.models.generation import GenerationSettings  # noqa: E402
from dtrak.models.pixel import PixelModel, new_scheduler, new_unet  # noqa: E402
from dtrak.models.sampling import generate  # noqa: E402
from dtrak.training.adjoint import Replay  # noqa: E402
from dtrak.training.loop import Run  # noqa: E402

BOTH = ("mean-squared-l2-norm", "loss")
DIM = 4096
TINY = {"sample_size": 16, "block_out_channels": [16, 16], "layers_per_block": 1, "norm_num_groups": 4,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": 8}  # fmt: skip
Rows = Iterator[tuple[str, str]]


@dataclass(frozen=True)
class Place:
    """Where the steps run.

    Attributes:
        device: "cuda", or "cpu" for a test of the script.
    """

    device: str

    @property
    def small(self) -> bool:
        """Whether to run tiny."""
        return self.device == "cpu"

    def model(self) -> PixelModel:
        """CIFAR-2's network at the paper's size with random weights, or a tiny one."""
        torch.manual_seed(0)
        unet = dict(TINY if self.small else load_study("cifar2").model.unet or {})
        unet.pop("num_class_embeds", None)
        return PixelModel(new_unet(unet), new_scheduler(), unet["sample_size"]).to(self.device)  # type: ignore[return-value]

    def wait(self) -> None:
        """Wait until the device is idle."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object], repeats: int = 5) -> float:
        """The median time of ``work`` after a warm-up."""
        found = []
        for _ in range(1 + repeats):
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            found.append(time.perf_counter() - start)
        return sorted(found[1:])[repeats // 2]

    def peak(self) -> str:
        """Peak memory since the last call, in words."""
        if self.device == "cpu":
            return "not measured"
        found = torch.cuda.max_memory_allocated() / 1e9
        torch.cuda.reset_peak_memory_stats()
        return f"{found:.2f} GB"


def tests(place: Place) -> Rows:
    """The tests that want a GPU."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_gpu.py"],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if "passed" in line or "failed" in line or "skipped" in line]
    yield "tests/test_gpu.py", lines[-1].strip("= ") if lines else (done.stdout + done.stderr)[-300:]


def accuracy(place: Place) -> Rows:
    """Features on the device against the processor's in double precision, with and without TF32."""
    timesteps = 2 if place.small else 10
    configs = [FeatureConfig(output=output, timesteps=timesteps, projection_dim=DIM) for output in BOTH]
    exact = place.model().to("cpu")
    exact.network.double()
    exact.dtype = torch.float64
    x = torch.randn(exact.latent_shape, dtype=torch.float64)
    wanted = [torch.from_numpy(f.parts).double().flatten() for f in FeatureExtractor(exact, configs)(x, "a", None)]
    for tf32 in (False, True):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        model = place.model()
        found = FeatureExtractor(model, configs)(x.float().to(place.device), "a", None)
        apart = [
            float((torch.from_numpy(f.parts).double().flatten() - w).norm() / w.norm())
            for f, w in zip(found, wanted, strict=True)
        ]
        yield f"relative error of features, {'TF32' if tf32 else 'float32'}", ", ".join(f"{a:.1e}" for a in apart)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def speed(place: Place) -> Rows:
    """Features a second against a plain forward and backward pass, and the paper's index extrapolated."""
    yield from speed_of(place, "CIFAR-2", place.model(), 5000)


def speed_of_lora(place: Place) -> Rows:
    """The same for ArtBench's LoRA of Stable Diffusion."""
    if place.small:
        return
    study = load_study("artbench2")
    model = Captioned(new_network(study).network, new_scheduler(), study.resolution).to(place.device)
    yield from speed_of(place, "ArtBench-2", model, 5000)


def speed_of(place: Place, title: str, model: DiffusionModel, images: int) -> Rows:
    """Features a second of a model.

    Args:
        images: of the index that is extrapolated.
    """
    timesteps = 2 if place.small else 10
    for tf32 in (False, True):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        word = "TF32" if tf32 else "float32"
        x = torch.randn(model.latent_shape, device=place.device)
        parameters = list(model.parameters().values())
        steps = torch.arange(0, 1000, 1000 // timesteps, device=place.device)
        batch = x.expand(len(steps), *x.shape)
        noise = torch.randn_like(batch)
        condition = model.condition([None] * len(steps))

        def floor() -> object:
            prediction = model.predict(model.add_noise(batch, noise, steps), steps, condition)  # noqa: B023
            return torch.autograd.grad((prediction - noise).square().mean(), parameters)  # noqa: B023

        least = place.seconds(floor)
        configs = [FeatureConfig(output=output, timesteps=timesteps, projection_dim=DIM) for output in BOTH]
        for count in (1, 2):
            extractor = FeatureExtractor(model, configs[:count])
            took = place.seconds(lambda: extractor(x, "a", None))  # noqa: B023
            yield (
                f"{title}, {count} output function{'s' if count > 1 else ''}, K = {timesteps}, {word}",
                f"{1 / took:.1f} images a second, {took / least:.2f} × a plain pass, peak {place.peak()}",
            )
        if not place.small:
            minutes = images * 10 * took / 60
            yield f"index of {title} ({images:,} images, K = 100), from K = 10, {word}", f"{minutes:.0f} min"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def sampling(place: Place) -> Rows:
    """Generating images."""
    model, count, steps = place.model(), *((2, 3) if place.small else (64, 50))
    settings = [GenerationSettings(seed, steps) for seed in range(count)]
    took = place.seconds(lambda: generate(model, settings), 1)
    yield f"{count} images of {steps} steps", f"{took:.1f} s, peak {place.peak()}"


def training(place: Place) -> Rows:
    """One training step, and one step of the exact influence."""
    model, size = place.model(), 4 if place.small else 128
    inputs = torch.randn(size, *model.latent_shape)
    names: list[Any] = [None] * size
    recipe = TrainingConfig(batch_size=size, steps=4, warmup=1, class_dropout=0)
    run = Run(model, recipe, inputs, [str(i) for i in range(size)], names)
    took = place.seconds(lambda: run.gradients(0), 3)
    yield f"gradient of a batch of {size}", f"{took:.3f} s, peak {place.peak()}"
    x = inputs[:1].to(place.device)
    t = torch.full((1,), 300, device=place.device)

    def loss() -> torch.Tensor:
        return model.predict(x, t, None).square().mean()

    start = time.perf_counter()
    Replay(run).influences([loss])
    place.wait()
    each = (time.perf_counter() - start) / recipe.steps
    yield "exact influence, a step there and back", f"{each:.2f} s, {each / took:.1f} × a gradient, peak {place.peak()}"


def estimates(place: Place) -> Rows:
    """What ``plan`` estimates of the same operations."""
    passes = count_passes(load_study("cifar2"))
    yield "operations of CIFAR-2's network, forward and backward", f"{passes.forward:.3g}, {passes.backward:.3g}"


STEPS: dict[str, Callable[[Place], Rows]] = {
    "tests": tests, "accuracy": accuracy, "speed": speed, "speed-lora": speed_of_lora, "sampling": sampling,
    "training": training, "estimates": estimates,
}  # fmt: skip


def machine() -> str:
    """The device and versions, in words."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "processor"
    return f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda or 'none'}, Python {platform.python_version()}"


def document(found: dict[str, list[list[str]]]) -> None:
    """Write docs/gpu.md's table."""
    from benchmarks.report import END

    path = ROOT / "docs" / "gpu.md"
    mark = "<!-- table: python scripts/prove_gpu.py -->\n"
    before, _, rest = path.read_text(encoding="utf-8").partition(mark)
    lines = [f"On {machine()}.", "", "| step | what | measured |", "|---|---|---|"]
    lines += [f"| {step} | {what} | {value} |" for step, rows in found.items() for what, value in rows]
    path.write_text(before + mark + "\n".join(lines) + "\n" + END + rest.partition(END)[2], encoding="utf-8")


def main() -> None:
    """Run the steps that are not done, within the time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=570)
    parser.add_argument("--out", type=Path, default=ROOT / "workspace" / "gpu.json")
    given = parser.parse_args()
    place = Place("cuda" if torch.cuda.is_available() else "cpu")
    end = time.monotonic() + given.seconds
    found: dict[str, list[list[str]]] = {}
    if given.out.exists():
        kept = json.loads(given.out.read_text())
        found = kept["steps"] if kept.get("machine") == machine() else {}
    if place.small:
        print("There is no GPU: this is a test of the script, tiny and on the processor.")
    for name, step in STEPS.items():
        if name in found:
            print(f"{name}: done before")
            continue
        if time.monotonic() > end:
            print("Out of time; run it again for the rest.")
            break
        start, rows = time.monotonic(), list[list[str]]()
        try:
            for what, value in step(place):
                rows.append([what, value])
                print(f"{name}: {what}: {value}", flush=True)
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:  # the other steps still run
            print(f"{name}: failed: {error}", flush=True)
            rows.append(["failed", str(error).splitlines()[0]])
        print(f"  {time.monotonic() - start:.0f} s", flush=True)
        found[name] = rows
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps({"machine": machine(), "steps": found}, indent=1))
        if not place.small:
            document(found)


if __name__ == "__main__":
    main()
