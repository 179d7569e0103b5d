"""Workers with separate workspaces exchange files through a URL and give the same bytes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dtrak.build import exact
from dtrak.build import features as building
from dtrak.build.exact import exact_of_evaluation
from dtrak.build.features import build_features
from dtrak.build.retrain import retrain_subsets
from dtrak.config import workspace
from dtrak.evaluation.removal import Removal, Task, draw_all, drawn
from dtrak.evaluation.subsets import query_set
from dtrak.execution.engines import Local
from dtrak.models.generation import GenerationSettings
from dtrak.study.folder import StudyFolder
from dtrak.study.remote import Mirrored
from dtrak.utils.errors import DtrakError
from dtrak.utils.files import noted, write_json
from tests.helpers import hashes


@pytest.fixture
def mirrored(tmp_path, monkeypatch):
    """Two processes on this machine, with workspaces in a separate cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    return Mirrored(Local(2), f"file://{tmp_path / 'url'}")


def test_features_are_the_same_bytes(fresh, mirrored, tmp_path, monkeypatch):
    monkeypatch.setattr(building, "SHARD_SIZE", 4)
    build_features(fresh, Local(1))
    alone = hashes(fresh.features)
    fresh.features.rename(fresh.root / "alone")
    stores = build_features(fresh, mirrored)
    assert all(store.complete for store in stores)
    assert hashes(fresh.features) == alone
    (outputs,) = (tmp_path / "url" / "outputs").iterdir()
    kept = {p.relative_to(outputs / "tiny") for p in outputs.rglob("shard-*")}
    assert kept == {p.relative_to(fresh.root) for p in fresh.features.rglob("shard-*")}


def test_what_was_lost_here_is_made_again(fresh, mirrored):
    query_set(fresh)
    for _ in range(2):
        retrain_subsets(fresh, "lds", 2, 1, mirrored)
        assert len(list((fresh.root / "truth" / "lds").iterdir())) == 2
        shutil.rmtree(fresh.root / "truth" / "lds")


def test_exact_influence_comes_back(fresh, mirrored, monkeypatch):
    monkeypatch.setattr(exact, "TOGETHER", 3)  # of six queries
    exact_of_evaluation(fresh, Local(1))
    alone = hashes(fresh.root / "exact")
    (fresh.root / "exact").rename(fresh.root / "alone")
    exact_of_evaluation(fresh, mirrored)
    assert hashes(fresh.root / "exact") == alone


def test_a_kept_model_is_sent(fresh, mirrored):
    removal = Removal.of(fresh, [], None, None)
    tasks = [Task(removal, (GenerationSettings(seed, 3, "round"),)) for seed in (1, 2)]
    draw_all(fresh, tasks[:1], Local(1))
    found = list(mirrored.results(_kept_model, (fresh.study,), tasks))
    assert found == [True, True]


def _kept_model(study):
    return lambda task: (task.removal.folder(StudyFolder(study)) / "removal.json").exists()


def test_retrained_models_and_pictures_come_back(fresh, mirrored):
    query_set(fresh)
    tasks = [
        Task(Removal.of(fresh, ids, None, None), (GenerationSettings(7, 3, "round"),))
        for ids in ([], fresh.table.train_ids[:2])
    ]
    found = []
    for engine in (Local(1), mirrored):
        retrain_subsets(fresh, "lds", 2, 1, engine)
        draw_all(fresh, tasks, engine)
        pictures = [drawn(fresh, task.removal, task.settings).tobytes() for task in tasks]
        kept = {str(p.relative_to(fresh.root)) for p in (fresh.root / "retrained").rglob("*") if p.is_file()}
        found.append((hashes(fresh.root / "truth"), pictures, kept))
        for name in ("truth/lds", "retrained"):
            (fresh.root / name).rename(fresh.root / f"gone-{len(found)}-{os.path.basename(name)}")
    assert found[0] == found[1]


def _where(study):
    return lambda task: (str(workspace()), (StudyFolder(study).data / "report.json").exists())


def test_workers_see_another_workspace(fresh, mirrored, tmp_path):
    for found, prepared in mirrored.results(_where, (fresh.study,), range(4)):
        assert Path(found).is_relative_to(tmp_path / "elsewhere")
        assert prepared
    assert list(mirrored.results(_where, (fresh.study,), [])) == []


@pytest.mark.parametrize("url", ["nowhere://folder", "s3://bucket/folder", "file:///proc/folder"])
def test_a_url_that_cannot_be_used_is_told(fresh, url, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(DtrakError, match="could not be"):
        list(Mirrored(Local(2), url).results(_where, (fresh.study,), range(4)))


def test_what_is_written_is_noted_in_its_order(tmp_path):
    write_json(tmp_path / "before.json", 0)
    with noted() as outer:
        write_json(tmp_path / "a.json", 1)
        with noted() as inner:
            write_json(tmp_path / "b.json", 2)
    write_json(tmp_path / "after.json", 3)
    assert [path.name for path in outer] == ["a.json", "b.json"]
    assert [path.name for path in inner] == ["b.json"]


def test_the_option_belongs_to_ray(source, tiny):
    command = [sys.executable, "-m", "index_builder", "build", str(source / "tiny.yaml"), "--artefacts", "file:///x"]
    told = subprocess.run(command, capture_output=True, text=True)
    assert told.returncode == 2
    assert "belongs to --engine ray" in told.stderr


def test_a_damaged_input_is_refused(fresh, mirrored, tmp_path):
    list(mirrored.results(_where, (fresh.study,), range(2)))
    shutil.rmtree(tmp_path / "elsewhere")
    for path in (tmp_path / "url" / "inputs").iterdir():
        path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(DtrakError, match="does not match its hash"):
        list(mirrored.results(_where, (fresh.study,), range(2)))
    assert not [p for p in (tmp_path / "elsewhere").rglob("*") if p.is_file() and p.suffix != ".part"]
