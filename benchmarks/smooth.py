"""The study of :mod:`benchmarks.exact`: a training that is smooth, its exact influence, and trainings without images.

A small pixel model that knows half of the faces learns 200 others. It is too small to draw them, so it is asked about
held-out images only. Everything is kept in a folder, and goes on after a kill.
"""

import csv
import io
import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import yaml
from jaxtyping import Float
from PIL import Image

from dtrak.build.training import train_model
from dtrak.config import ROOT, Study, load_study
from dtrak.evaluation.exact import exact_influence, query_loss
from dtrak.evaluation.subsets import query_losses, query_set
from dtrak.execution.engines import Local
from dtrak.methods.exact import folder_of, path_of
from dtrak.methods.query import QuerySet
from dtrak.study.folder import StudyFolder, needs_training
from dtrak.training.adjoint import Replay
from dtrak.training.study import training_run
from dtrak.utils.files import digest, write_json, write_npy
from dtrak.utils.noise import keyed_generator

SIDE, BASE, TRAINED, HELDOUT, GENERATED = 32, 430, 200, 32, 1  # pixels; images of the base, the study; queries
TOGETHER = 8  # queries that share a replay
UNET = {
    "sample_size": SIDE // 2, "in_channels": 12, "out_channels": 12, "block_out_channels": [16, 32, 32],
    "down_block_types": ["DownBlock2D", "DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
    "layers_per_block": 1, "norm_num_groups": 8, "attention_head_dim": 16, "num_class_embeds": 10,
}  # fmt: skip
BASE_RECIPE = {"steps": 2000, "batch_size": 32, "learning_rate": 1e-3, "final_learning_rate": 0, "ema_decay": 0.99}
RECIPE = {
    "steps": 60, "batch_size": 67, "learning_rate": 1e-3, "final_learning_rate": 0, "warmup": 6,
    "betas": [0.9, 0.999], "epsilon": 1e-4, "timestep_sampling": "stratified",
}  # fmt: skip
FEATURES = [
    {"output": "mean-squared-l2-norm", "timesteps": 10, "projection_dim": 4096, "apart": True},
    {"output": "loss", "timesteps": 10, "projection_dim": 4096, "apart": True},
]
MEAN = {"output": "mean", "timesteps": 10, "projection_dim": 2048, "apart": True}


def prepared(out: Path) -> StudyFolder:
    """The study, its images and YAML written, its base and its model trained."""
    os.environ["DTRAK_WORKSPACE"] = str(out / "workspace")
    faces = pq.read_table(ROOT / "assets" / "faces" / "faces.parquet").to_pylist()
    order = keyed_generator("exact", 0, "").permutation(len(faces))
    parts = {"base": order[:BASE], "smooth": order[BASE : BASE + TRAINED + HELDOUT]}
    recipes: dict[str, Any] = {
        "base": {"model": {"unet": UNET, "null_class": 0}, "training": {**BASE_RECIPE, "checkpoints": [1.0]}},
        "smooth": {
            "model": {"base": str(out / "base.yaml")}, "training": {**RECIPE, "checkpoints": [1.0]},
            "features": FEATURES, "ablations": [MEAN], "truth": {"generated": GENERATED},
        },
    }  # fmt: skip
    for name, rows in parts.items():
        if not (out / name / "metadata.csv").exists():
            _write_images(out / name, [faces[row] for row in rows])
        data = {"kind": "imagefolder", "path": name, "holdout": 0, "keep_duplicates": True}
        content = {"data": data, "resolution": SIDE, **recipes[name]}
        (out / f"{name}.yaml").write_text(yaml.safe_dump(content))
    folder = StudyFolder(load_study(str(out / "smooth.yaml")))
    if needs_training(folder):
        train_model(folder)
    return folder


def _write_images(folder: Path, faces: Sequence[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [["file_name", "label", "creator", "split"]]
    for number, face in enumerate(faces):
        image = Image.open(io.BytesIO(face["image"])).convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        image.save(folder / f"{number:03d}.png")
        split = "train" if folder.name == "base" or number < TRAINED else "heldout"
        lines.append([f"{number:03d}.png", face["label"], face["creator"], split])
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(lines)


def queries_of(folder: StudyFolder) -> QuerySet:
    """The held-out images."""
    asked = query_set(folder)
    return asked.take(range(asked.heldout))


def influence(folder: StudyFolder, asked: QuerySet, engine: Local) -> Float[np.ndarray, "q n"]:
    """Compute the exact influence on all queries; also at w = ½, which is returned."""
    queries = range(len(asked.queries))
    groups = [tuple(queries[start : start + TOGETHER]) for start in range(0, len(queries), TOGETHER)]
    tasks = [(half, group) for half in (False, True) for group in groups]
    for done, _ in enumerate(engine.results(_influencer, (folder.study,), tasks), 1):
        say("exact influence", done, len(tasks))
    return np.stack([np.load(_at_half(folder, asked, query)) for query in queries])


def _influencer(study: Study) -> Callable[[tuple[bool, tuple[int, ...]]], None]:
    return partial(_influence, StudyFolder(study))


def _influence(folder: StudyFolder, task: tuple[bool, tuple[int, ...]]) -> None:
    half, group = task
    asked = queries_of(folder)
    queries = [asked.queries[query] for query in group]
    paths = [_at_half(folder, asked, query) if half else path_of(folder, asked.queries[query]) for query in group]
    if all(path.exists() for path in paths):
        return
    if not half:
        growth = exact_influence(folder, queries).growth
        print(f"growth of the adjoint: {growth:.2g}", flush=True)
        return
    weights = torch.full((folder.table.train_size,), 0.5)
    run = training_run(folder, folder.study.training, weights=weights)
    found = Replay(run).influences([query_loss(run.model, query, folder.study.truth) for query in queries])
    for path, row in zip(paths, found.numpy(), strict=True):
        write_npy(path, -row)


def _at_half(folder: StudyFolder, asked: QuerySet, query: int) -> Path:
    return folder_of(folder) / "half" / f"{digest([asked.queries[query].id])}.npy"


def losses_without(folder: StudyFolder, removals: Sequence[tuple[int, ...]], engine: Local) -> list[np.ndarray]:
    """The losses of all queries of models trained without some images; () removes none."""
    for done, _ in enumerate(engine.results(_trainer, (folder.study,), removals), 1):
        say("removals", done, len(removals))
    return [np.array(json.loads(_losses_path(folder, rows).read_text())) for rows in removals]


def _trainer(study: Study) -> Callable[[tuple[int, ...]], None]:
    return partial(_train_without, StudyFolder(study))


def _train_without(folder: StudyFolder, rows: tuple[int, ...]) -> None:
    path = _losses_path(folder, rows)
    if path.exists():
        return
    weights = torch.ones(folder.table.train_size)
    weights[list(rows)] = 0
    run = training_run(folder, folder.study.training, weights=weights)
    run.train()
    run.use_average()
    losses = query_losses(run.model, query_set(folder).queries, folder.study.truth)
    write_json(path, losses.astype(np.float64).mean(1).tolist())


def _losses_path(folder: StudyFolder, rows: Sequence[int]) -> Path:
    return folder_of(folder) / "without" / f"{digest(sorted(rows))}.json"


def say(what: str, done: int, total: int) -> None:
    """Print progress on one line."""
    print(f"\r{what}: {done}/{total}", end="\n" if done == total else "", flush=True)
