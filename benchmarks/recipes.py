"""``python -m benchmarks.recipes BASE FACES OUT``: cost, quality and smoothness of fine-tuning recipes for the demo.

Each recipe fine-tunes the base on the faces, generates images for 64 captions, and backpropagates the loss of held-out
images through the training: derivatives through it are meaningful only if the norm of the parameters' adjoint does not
grow by orders of magnitude. Writes one JSON line and one sheet of samples per recipe to OUT; existing recipes are
skipped. ``--recipes FILE`` is a JSON file: name → keys of ``training``.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from dtrak.config import TrainingConfig
from dtrak.models.base import DiffusionModel
from dtrak.models.families.stable_diffusion import load_stable_diffusion
from dtrak.models.generation import GenerationSettings
from dtrak.models.lora import add_lora
from dtrak.models.sampling import generate
from dtrak.training.adjoint import Replay
from dtrak.training.loop import Run
from dtrak.utils.errors import DtrakError
from dtrak.utils.noise import feature_noise, keyed_generator

MODULES = (
    "conv1", "conv2", "conv_shortcut", "conv_in", "conv_out", "conv", "time_emb_proj", "proj_in", "proj_out",
    "to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2",
)  # fmt: skip
SAMPLES, STEPS, GUIDANCE, TIMESTEPS = 64, 50, 2.0, 10
QUERIES = 16  # held-out images whose mean loss is differentiated
COMMON: dict[str, Any] = {
    "method": "lora", "lora_modules": MODULES, "steps": 112, "batch_size": 64, "learning_rate": 1e-3,
    "final_learning_rate": 0.0, "warmup": 12, "betas": (0.9, 0.999), "epsilon": 1e-4, "rank": 16, "alpha": 16,
    "class_dropout": 0.1, "timestep_sampling": "stratified",
}  # fmt: skip


def read(path: Path) -> dict[str, Any]:
    """Ids, captions and pixels of the training and held-out faces."""
    found: dict[str, Any] = {}
    for split in ("train", "heldout"):
        rows = [row for row in pq.read_table(path).to_pylist() if row["split"] == split]
        pixels = np.stack([np.asarray(Image.open(io.BytesIO(row["image"])).convert("RGB")) for row in rows])
        found[split] = ([r["id"] for r in rows], [r["caption"] for r in rows], pixels)
    return found


def query_losses(model: DiffusionModel, x: Tensor, ids: list[str], names: list[str], count: int) -> Tensor:
    """The loss of each image, averaged over ``count`` timesteps with keyed noise; differentiable."""
    total: Tensor = torch.zeros(len(x), device=x.device)
    condition = model.condition(names)
    for t in range(0, 1000, 1000 // count):
        noise = torch.from_numpy(np.concatenate([feature_noise(0, i, [(t, 0)], tuple(x.shape[1:])) for i in ids]))
        noise, timesteps = noise.to(x.device), torch.full((len(x),), t, device=x.device)
        predicted = model.predict(model.add_noise(x, noise, timesteps), timesteps, condition)
        total = total + (predicted - noise).square().flatten(1).mean(1) / count
    return total


def measure(name: str, keys: dict[str, Any], base: Path, faces: Path, out: Path, device: str, growth: bool) -> None:
    """Train, generate and backpropagate; write the recipe's JSON line and sheet."""
    torch.manual_seed(0)
    data = read(faces)
    keys = {**COMMON, **keys}
    only_b = keys.pop("only_b", False)
    config = TrainingConfig(**keys)
    model = load_stable_diffusion(base, 64, None, torch.float32)
    if config.method == "lora":
        add_lora(model, config)
    for parameter_name, parameter in model.network.named_parameters():
        if only_b and "lora_A" in parameter_name:
            parameter.requires_grad_(False)
    model.to(device)
    ids, captions, pixels = data["train"]
    run = Run(model, config, model.codec.training_inputs(pixels), ids, captions)
    replay = Replay(run)
    start = time.monotonic()
    replay.forward()
    seconds = time.monotonic() - start
    line: dict[str, Any] = {
        "name": name, "keys": keys, "only_b": only_b, "seconds": round(seconds, 1), "device": device,
        "tuned": sum(p.numel() for p in run.parameters.values()),
    }  # fmt: skip
    x = {split: model.encode(data[split][2]).to(device) for split in data}
    with torch.no_grad():
        for split, (names, told, _) in data.items():
            line[split] = query_losses(model, x[split][:200], names[:200], told[:200], TIMESTEPS).mean().item()
    chosen = keyed_generator("recipes", 0, "prompts").choice(len(captions), SAMPLES, replace=False)
    settings = [
        GenerationSettings(seed=i, steps=STEPS, label=captions[j], guidance=GUIDANCE) for i, j in enumerate(chosen)
    ]
    drawn = generate(model, settings)
    sheet = drawn.reshape(8, 8, 64, 64, 3).transpose(0, 2, 1, 3, 4).reshape(512, 512, 3)
    Image.fromarray(sheet).save(out / f"{name}.webp", lossless=True)
    if growth:
        names, told, _ = data["heldout"]

        def loss() -> Tensor:
            return query_losses(model, x["heldout"][:QUERIES], names[:QUERIES], told[:QUERIES], TIMESTEPS).mean()

        with contextlib.suppress(DtrakError):  # no longer finite: the growth until then is kept
            replay.influences([loss])
        line["adjoint"] = [float(f"{n:.4g}") for n in replay.growth]
    with (out / "recipes.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    norms = line.get("adjoint", [1.0])
    quality = f"train {line['train']:.4f}, heldout {line['heldout']:.4f}"
    print(f"{name}: {seconds:.0f} s, {quality}, growth {max(norms) / norms[0]:.2g}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for argument in ("base", "faces", "out"):
        parser.add_argument(argument, type=Path)
    parser.add_argument("--recipes", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--no-growth", action="store_true")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    log = arguments.out / "recipes.jsonl"
    done = {json.loads(line)["name"] for line in log.read_text().splitlines()} if log.exists() else set()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    jobs = [
        (name, keys, arguments.base, arguments.faces, arguments.out, device, not arguments.no_growth)
        for name, keys in json.loads(arguments.recipes.read_text()).items()
        if name not in done
    ]
    with multiprocessing.get_context("spawn").Pool(arguments.workers, maxtasksperchild=1) as pool:
        for _ in [pool.apply_async(measure, job, error_callback=lambda e: print(repr(e), flush=True)) for job in jobs]:
            pass
        pool.close()
        pool.join()


if __name__ == "__main__":
    main()
