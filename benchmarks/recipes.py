"""``python -m benchmarks.recipes BASE FACES OUT``: cost, quality and smoothness of fine-tuning recipes for the demo.

Each recipe fine-tunes the base on the faces, generates images for 256 captions, and backpropagates through the training
for two queries: derivatives through the training are meaningful only if the norm of the parameters' adjoint does not
grow by orders of magnitude. Writes one JSON line and one sheet of samples per recipe to OUT; existing recipes are
skipped. ``--recipes FILE`` is a JSON file: name → keys of ``training``.
"""

import argparse
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
from torch.nn.attention import SDPBackend, sdpa_kernel

from dtrak.config import TrainingConfig
from dtrak.models.base import DiffusionModel
from dtrak.models.lora import add_lora
from dtrak.models.sampling import GenerationSettings, generate
from dtrak.models.stable_diffusion import load_stable_diffusion
from dtrak.training.loop import Run, learning_rate
from dtrak.utils.noise import feature_noise, keyed_generator

MODULES = (
    "conv1", "conv2", "conv_shortcut", "conv_in", "conv_out", "conv", "time_emb_proj", "proj_in", "proj_out",
    "to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2",
)  # fmt: skip
SAMPLES, STEPS, GUIDANCE, TIMESTEPS = 256, 50, 2.0, 20
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


def adjoint_norms(run: Run, states: list[tuple[list[Tensor], ...]], queries: list[Tensor]) -> list[list[float]]:
    """‖∂L/∂θ_s‖ from the last step to the first, for each query.

    Args:
        states: parameters and both moments before each step.
        queries: the flattened gradient of each query's loss at the averaged weights.
    """
    config, parameters = run.config, list(run.parameters.values())
    beta1, beta2 = config.betas

    def flat(tensors: Any) -> Tensor:
        return torch.cat([t.flatten() for t in tensors])

    average = torch.stack(queries)
    theta, first, second = torch.zeros_like(average), torch.zeros_like(average), torch.zeros_like(average)
    norms = [[q.norm().item()] for q in queries]
    sizes = [p.numel() for p in parameters]
    for step in reversed(range(len(states))):
        before, m, v = (states[step][0], flat(states[step][1]), flat(states[step][2]))
        with torch.no_grad():
            for p, value in zip(parameters, before, strict=True):
                p.copy_(value)
        batch = run.batches(step)
        x_t = run.model.add_noise(batch.x, batch.noise, batch.timesteps)
        errors = (run.model.predict(x_t, batch.timesteps, batch.condition) - batch.noise).square().flatten(1).mean(1)
        weights = batch.weights * run.model.process.loss_weights(batch.timesteps, config.min_snr_gamma)
        gradients = torch.autograd.grad((weights * errors).sum() / config.batch_size, parameters, create_graph=True)
        with torch.no_grad():
            g, rate = flat(gradients), learning_rate(config, step, run.steps)
            c1, c2 = 1 - beta1 ** (step + 1), 1 - beta2 ** (step + 1)
            m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
            root = (v / c2 + config.epsilon**2).sqrt()
            decay = min(config.ema_decay, (1 + step) / (10 + step))
            theta = theta + (1 - decay) * average
            average = decay * average
            first = first - rate / c1 * theta / root
            second = second + rate * theta * (m / c1) / (2 * c2 * root**3)
            cotangents = (1 - beta1) * first + 2 * (1 - beta2) * g * second
            theta = (1 - rate * config.weight_decay) * theta
        for i, cotangent in enumerate(cotangents):
            parts = [c.view(p.shape) for c, p in zip(cotangent.split(sizes), parameters, strict=True)]
            last = i == len(cotangents) - 1
            theta[i] += flat(torch.autograd.grad(gradients, parameters, parts, retain_graph=not last))
            norms[i].append((theta[i] + average[i]).norm().item())
        first, second = beta1 * first, beta2 * second
        if not torch.isfinite(theta).all():
            break
    return norms


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
    states: list[tuple[list[Tensor], ...]] = []

    def keep(*_: Any) -> None:
        kept = (run.parameters.values(), run.optimiser.first, run.optimiser.second)
        states.append(tuple([t.detach().clone() for t in part] for part in kept))

    keep()
    start = time.monotonic()
    run.train(at_steps=keep if growth else lambda step: None)
    seconds = time.monotonic() - start
    states = states[: run.steps]
    last = [p.detach().clone() for p in run.parameters.values()]
    run.use_average()
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
    sheet = drawn.reshape(16, 16, 64, 64, 3).transpose(0, 2, 1, 3, 4).reshape(1024, 1024, 3)
    Image.fromarray(sheet).save(out / f"{name}.webp", lossless=True)
    if growth:
        with sdpa_kernel(SDPBackend.MATH):
            queries = []
            for rows in (slice(0, 1), slice(0, 64)):
                names, told = data["heldout"][0][rows], data["heldout"][1][rows]
                value = query_losses(model, x["heldout"][rows], names, told, 10).mean()
                found = torch.autograd.grad(value, list(run.parameters.values()))
                queries.append(torch.cat([g.flatten() for g in found]))
            with torch.no_grad():
                for p, value in zip(run.parameters.values(), last, strict=True):
                    p.copy_(value)
            line["adjoint"] = [[float(f"{n:.4g}") for n in row] for row in adjoint_norms(run, states, queries)]
    with (out / "recipes.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    growth_at = [
        " ".join(f"{row[place] / row[0]:.2g}" for place in (min(10, len(row) - 1), len(row) // 2, -1))
        for row in line.get("adjoint", [])
    ]
    losses = f"train {line['train']:.4f}, heldout {line['heldout']:.4f}"
    print(f"{name}: {seconds:.0f} s, {losses}, growth {growth_at}", flush=True)


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
