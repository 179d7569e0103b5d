"""Damage of every kind of file is found, and ``verify --repair`` and ``build`` make the study whole again."""

import shutil

import numpy as np
import pytest
import yaml

from dtrak.config import load_study
from dtrak.index.faiss_index import AttributionIndex
from dtrak.methods.attributor import Attributor
from dtrak.methods.registry import METHODS
from dtrak.methods.settings import Setting
from dtrak.study.folder import StudyFolder
from dtrak.utils.errors import DtrakError
from tests.conftest import write_study
from tests.helpers import build_hashes, call

KINDS = (
    "data/pixels.npy", "data/records.parquet", "data/report.json", "costs.json", "study.json",
    "features/*/manifest.json", "features/*/shard-00000.npy", "features/*/shard-00000.values.npy",
    "features/*/shard-00000.json", "index/*/manifest.json", "index/*/features.npy", "index/*/vectors.faiss",
    "index/*/norms.npy", "index/*/eigenvectors.npy",
)  # fmt: skip
SEEN = tuple(kind for kind in KINDS if kind.split("/")[0] in ("data", "features", "index"))
FEATURE = {"output": "mean-squared-l2-norm", "timesteps": 2, "projection_dim": 8}


def zero(content):
    return bytes(len(content))


def truncate(content):
    return content[: len(content) // 2]


def flip(content):
    place = len(content) * 2 // 3
    return content[:place] + bytes([content[place] ^ 0x40]) + content[place + 1 :]


DAMAGES = [zero, truncate, flip, None]  # the first two on every other kind of file, for time


@pytest.fixture(scope="module")
def small(source, tmp_path_factory):
    """A study of one feature set, built."""
    root = tmp_path_factory.mktemp("small")
    for name in ("images", "model"):
        shutil.copytree(source / name, root / name)
    content = yaml.safe_load(write_study(root).read_text())
    content |= {"name": "small", "features": [FEATURE], "ablations": []}
    content["model"] = {key: content["model"][key] for key in ("path", "classes", "null_class")}
    path = root / "small.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DTRAK_WORKSPACE", str(root / "workspace"))
        assert call("build", path, "--index-only").exit_code == 0
        yield path, root / "workspace" / "small"


@pytest.fixture
def copy(small, tmp_path, monkeypatch):
    path, folder = small
    shutil.copytree(folder, tmp_path / "small")
    monkeypatch.setenv("DTRAK_WORKSPACE", str(tmp_path))
    return path, tmp_path / "small"


@pytest.mark.parametrize("damage", DAMAGES)
def test_any_damaged_file_is_mended(copy, small, damage, monkeypatch):
    monkeypatch.setattr("dtrak.build.pipeline.build_rest", lambda *a, **k: None)
    study, folder = copy
    before = build_hashes(small[1])
    for kind in KINDS[DAMAGES.index(damage) % 2 :: 2] if damage in (zero, truncate) else KINDS:
        (file,) = sorted(folder.glob(kind))[:1]
        content = file.read_bytes()
        if damage is None:
            file.unlink()
        else:
            file.write_bytes(damage(content))
        found = call("verify", study, "--repair")
        assert ("is intact" not in found.output) == (kind in SEEN), (kind, found.output)
        assert call("build", study, "--index-only").exit_code == 0, kind
        assert build_hashes(folder) == before, kind
    assert call("verify", study).exit_code == 0


def test_a_damaged_index_is_refused_when_opened(copy):
    study, folder = copy
    attributor = Attributor(StudyFolder(load_study(str(study))))
    assert attributor.index("dtrak")
    (file,) = folder.glob("index/*/features.npy")
    file.write_bytes(flip(file.read_bytes()))
    with pytest.raises(DtrakError, match="is damaged"):
        Attributor(StudyFolder(load_study(str(study)))).index("dtrak")


def test_a_large_index_is_checked_by_its_norms(copy, monkeypatch):
    study, folder = copy
    monkeypatch.setattr("dtrak.index.faiss_index.SMALL", 0)
    (file,) = folder.glob("index/*/features.npy")
    rows = np.load(file)
    rows[:, 3] *= 2
    np.save(file, rows)
    with pytest.raises(DtrakError, match="does not match norms"):
        Attributor(StudyFolder(load_study(str(study)))).index("dtrak")


@pytest.mark.parametrize("value", [1e35, np.nan])
def test_implausible_scores_are_refused(attributor, query, monkeypatch, value):
    features, method = attributor.features(query, [Setting("dtrak")]), type(METHODS["dtrak"])
    monkeypatch.setattr(method, "scores", lambda *a: (np.array([0.0, value]), 1.0))
    with pytest.raises(DtrakError, match="damaged"):
        attributor.attribute(query, features, "dtrak", exhaustive=True)
    found = [(np.array([0]), np.array([value])), (np.array([1]), np.array([-1.0]))]
    monkeypatch.setattr(AttributionIndex, "both_ends", lambda *a: found)
    with pytest.raises(DtrakError, match="damaged"):
        attributor.attribute(query, features, "dtrak")


def test_damaged_data_are_named_before_the_features(copy):
    study, folder = copy
    file = folder / "data" / "pixels.npy"
    file.write_bytes(flip(file.read_bytes()))
    found = call("verify", study)
    assert "data: pixels.npy is missing or damaged" in found.output
    assert "features" not in found.output
