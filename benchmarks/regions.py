"""``python -m benchmarks.regions``: does asking about half of a picture find where this half came from?

A small model is trained on pictures that are put together of two independent halves, so that the source of each half is
known. Queries are pairs of the same halves that were never trained on.
"""

import io
import os
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import yaml
from PIL import Image

from benchmarks.report import Row, publish
from dtrak.build.features import build_features, build_indexes
from dtrak.config import ROOT, load_study
from dtrak.data import prepare
from dtrak.execution.engines import Local
from dtrak.gradients.region import Region
from dtrak.methods.attributor import Attributor
from dtrak.methods.query import Query
from dtrak.methods.registry import METHODS
from dtrak.methods.settings import Setting
from dtrak.study.folder import StudyFolder
from dtrak.training.study import train_study
from dtrak.utils.noise import keyed_generator

SIDE, HALVES, TRAINED, ASKED = 32, 24, 144, 72  # pixels, halves a side, training images, queries
REGIONS = {"left": Region(0, 0, 0.5, 1), "right": Region(0.5, 0, 1, 1), "all": None}
STUDY = {
    "data": {"kind": "imagefolder", "path": "images", "holdout": 0},
    "resolution": SIDE,
    "model": {
        "unet": {
            "sample_size": SIDE // 2, "in_channels": 12, "out_channels": 12, "block_out_channels": [32, 64],
            "down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
            "layers_per_block": 1, "norm_num_groups": 8, "attention_head_dim": 16,
        }
    },
    "training": {"steps": 1500, "batch_size": 32, "learning_rate": 1e-3, "final_learning_rate": 0, "class_dropout": 0,
                 "checkpoints": [1.0]},
    "features": [
        {"output": output, "timesteps": 10, "projection_dim": 4096} for output in ("mean-squared-l2-norm", "loss")
    ],
}  # fmt: skip


def pictures() -> tuple[list[np.ndarray], list[tuple[int, int]]]:
    """Faces of which the left or right halves are taken, and all pairs (left, right) in random order."""
    faces = pq.read_table(ROOT / "assets" / "faces" / "faces.parquet", columns=["image"])["image"]
    random = keyed_generator("regions", 0, "")
    chosen = random.permutation(len(faces))[: 2 * HALVES]
    drawn = [Image.open(io.BytesIO(faces[int(i)].as_py())).convert("RGB").resize((SIDE, SIDE)) for i in chosen]
    pairs = [(left, right) for left in range(HALVES) for right in range(HALVES)]
    return [np.asarray(face) for face in drawn], [pairs[i] for i in random.permutation(len(pairs))]


def joined(faces: list[np.ndarray], pair: tuple[int, int]) -> np.ndarray:
    """The left half of one face beside the right half of another."""
    left, right = faces[pair[0]], faces[HALVES + pair[1]]
    return np.concatenate([left[:, : SIDE // 2], right[:, SIDE // 2 :]], axis=1)


def main() -> None:
    """Train, ask, print the table and write it to docs/evaluation.md."""
    faces, pairs = pictures()
    trained, asked = pairs[:TRAINED], pairs[TRAINED : TRAINED + ASKED]
    with tempfile.TemporaryDirectory() as place:
        os.environ["DTRAK_WORKSPACE"] = str(Path(place) / "workspace")
        folder = _study(Path(place), faces, trained)
        train_study(folder)
        build_indexes(folder, build_features(folder, Local(1)))
        attributor, rows = Attributor(folder), []
        known = [trained[int(Path(name).stem)] for name in attributor.table.train_ids]
        for name in ("dtrak", "trak"):
            for region, part in REGIONS.items():
                found = [_first(attributor, name, Query(joined(faces, pair), region=part)) for pair in asked]
                rows.append(_row(METHODS[name].title, region, [known[row] for row in found], asked))
    for region in REGIONS:
        found = [_nearest(faces, trained, pair, region) for pair in asked]
        rows.append(_row("Nearest pixels", region, [trained[number] for number in found], asked))
    rows.append(_chance(known, asked))
    header = ("asked", "first image has the same left half", "the same right half")
    publish("python -m benchmarks.regions", rows, header, "evaluation.md")


def _study(place: Path, faces: list[np.ndarray], trained: list[tuple[int, int]]) -> StudyFolder:
    (place / "images").mkdir()
    for number, pair in enumerate(trained):
        Image.fromarray(joined(faces, pair)).save(place / "images" / f"{number:03d}.png")
    (place / "halves.yaml").write_text(yaml.safe_dump(STUDY))
    folder = StudyFolder(load_study(str(place / "halves.yaml")))
    prepare(folder.study, folder.data)
    return folder


def _first(attributor: Attributor, name: str, query: Query) -> int:
    setting = Setting(name)
    return int(attributor.scores(setting, query, attributor.features(query, [setting], by_block=False))[0].argmax())


def _nearest(faces: list[np.ndarray], trained: list[tuple[int, int]], pair: tuple[int, int], region: str) -> int:
    columns = {"left": slice(0, SIDE // 2), "right": slice(SIDE // 2, None), "all": slice(None)}[region]
    wanted = joined(faces, pair)[:, columns].astype(float)
    return int(np.argmin([np.square(joined(faces, one)[:, columns] - wanted).sum() for one in trained]))


def _row(title: str, region: str, found: list[tuple[int, int]], asked: list[tuple[int, int]]) -> Row:
    left, right = (np.mean([a[side] == b[side] for a, b in zip(found, asked, strict=True)]) for side in (0, 1))
    where = "the whole picture" if region == "all" else f"the {region} half"
    return f"{title}, asked about {where}", f"{left:.0%}", f"{right:.0%}"


def _chance(known: list[tuple[int, int]], asked: list[tuple[int, int]]) -> Row:
    left, right = (np.mean([[a[side] == b[side] for a in known] for b in asked]) for side in (0, 1))
    return "a training image at random", f"{left:.0%}", f"{right:.0%}"


if __name__ == "__main__":
    main()
