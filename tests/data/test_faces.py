"""The faces that ship with the demo: what is in the file, and that it can be prepared as any study's data."""

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from dtrak.config import ROOT, load_study
from dtrak.data import load_table, prepare

FACES = ROOT / "assets" / "faces" / "faces.parquet"
LICENCES = {
    "Google": {"Apache-2.0"}, "Twitter": {"CC-BY-4.0"}, "Microsoft": {"MIT"}, "OpenMoji": {"CC-BY-SA-4.0"},
    "EmojiOne": {"CC-BY-4.0", "CC-BY-SA-4.0"}, "Mozilla": {"Apache-2.0"},
}  # fmt: skip


@pytest.fixture(scope="module")
def rows():
    return pq.read_table(FACES).to_pylist()


def test_every_face_has_its_creator_and_licence(rows):
    assert len(rows) > 750
    assert len({row["label"] for row in rows}) == 9
    assert {row["creator"] for row in rows} == set(LICENCES)
    assert all(row["licence"] in LICENCES[row["creator"]] for row in rows)
    assert all(row["caption"] == f"{row['expression']}, {row['label']}" for row in rows)
    assert len({row["id"] for row in rows}) == len(rows)


def test_a_hundred_are_held_out_in_proportion(rows):
    held = Counter(row["label"] for row in rows if row["split"] == "heldout")
    every = Counter(row["label"] for row in rows)
    assert sum(held.values()) == 100
    assert all(abs(held[style] - 100 * every[style] / len(rows)) < 1 for style in every)


def test_pictures_are_64_pixels_on_white_and_all_different(rows):
    pictures = [np.asarray(Image.open(io.BytesIO(row["image"])).convert("RGB")) for row in rows]
    assert {p.shape for p in pictures} == {(64, 64, 3)}
    assert len({p.tobytes() for p in pictures}) == len(rows)
    assert np.mean([(p[0, 0] > 240).all() for p in pictures]) > 0.95


def test_they_are_prepared_as_any_parquet(tmp_path):
    content = {"data": {"kind": "parquet", "path": str(FACES), "id_column": "id"}, "resolution": 64}
    (tmp_path / "faces.yaml").write_text(yaml.safe_dump(content))
    report = prepare(load_study(str(tmp_path / "faces.yaml")), tmp_path / "data")
    assert report.heldout == 100
    assert not report.refused
    assert not report.duplicates
    table = load_table(Path(tmp_path / "data"))
    assert table.records[0].creator in LICENCES
