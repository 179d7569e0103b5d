"""A build gives the same bytes for any number of workers and after any interruption; only one runs at a time."""

import os
import signal
import subprocess
import sys
import time
from multiprocessing import get_context

import numpy as np
import pytest

from dtrak.build import features as building
from dtrak.build.features import build_features, build_indexes
from dtrak.build.verify import verify_study
from dtrak.execution.engines import Local
from dtrak.index.faiss_index import AttributionIndex
from dtrak.index.store import FeatureStore
from dtrak.methods.attributor import Attributor
from dtrak.utils.errors import DtrakError
from dtrak.utils.files import _host, exclusive, remove_leftovers
from tests.helpers import build_hashes, hashes


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(building, "SHARD_SIZE", 4)


def test_workers_change_no_byte(fresh, tiny, small_shards, monkeypatch, tmp_path):
    monkeypatch.setenv("DTRAK_WORKSPACE", str(tmp_path / "workspace"))
    build_indexes(fresh, build_features(fresh, Local(2)))
    two = build_hashes(fresh.root)
    for name in ("features", "index"):
        (fresh.root / name).rename(fresh.root / f"old-{name}")
    build_indexes(fresh, build_features(fresh, Local(1)))
    assert build_hashes(fresh.root) == two


def test_shard_size_changes_no_number(fresh, tiny, small_shards, monkeypatch, built, tmp_path):
    monkeypatch.setenv("DTRAK_WORKSPACE", str(tmp_path / "workspace"))
    for store in build_features(fresh, Local(1)):
        other = FeatureStore.open(built / "tiny" / "features" / store.fingerprint)
        np.testing.assert_array_equal(store.read(), other.read())


def test_a_killed_build_resumes_to_the_same_bytes(fresh, small_shards):
    def build():
        build_indexes(fresh, build_features(fresh, Local(1)))

    for wanted, kind in zip((1, 4, 8, 1), ("features/*/shard-*.json",) * 3 + ("index/*",), strict=True):
        process = get_context("fork").Process(target=build)
        process.start()
        while process.is_alive() and len(list(fresh.root.glob(kind))) < wanted:
            time.sleep(0.002)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    build()
    resumed = build_hashes(fresh.root)
    for name in ("features", "index"):
        (fresh.root / name).rename(fresh.root / f"old-{name}")
    build()
    assert build_hashes(fresh.root) == resumed
    assert not list(fresh.root.rglob("features/**/*.part"))


def test_a_killed_command_goes_on_and_ends_with_the_librarys_bytes(fresh, source):
    command = [sys.executable, "-m", "index_builder", "build", str(source / "tiny.yaml"), "--workers", "2"]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(fresh.features.glob("*/shard-*.json")):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    subprocess.run([*command, "--index-only"], check=True, stderr=subprocess.DEVNULL)
    found = build_hashes(fresh.root)
    for name in ("features", "index"):
        (fresh.root / name).rename(fresh.root / f"old-{name}")
    build_indexes(fresh, build_features(fresh, Local(1)))
    mine = build_hashes(fresh.root)
    assert mine
    assert {path: found.get(path) for path in mine} == mine


def test_resume_computes_only_what_is_missing(fresh, small_shards, monkeypatch):
    stores = build_features(fresh, Local(1))
    before = hashes(fresh.features)
    stores[0].discard(1)
    (stores[0].folder / "shard-00001.npy.part").write_bytes(b"half")
    seen = []
    real = building.extract_rows
    monkeypatch.setattr(building, "extract_rows", lambda *a: seen.append(a[2]) or real(*a))
    build_features(fresh, Local(1))
    assert seen == [range(4, 8)]
    assert hashes(fresh.features) == before


def test_a_set_that_is_missing_alone_has_the_same_bytes(fresh):
    stores = build_features(fresh, Local(1))
    before = hashes(fresh.features)
    for store in stores:
        store.discard(0)
        build_features(fresh, Local(1))
        assert hashes(fresh.features) == before


def test_a_second_builder_is_told(fresh):
    with exclusive(fresh.root, "x"), pytest.raises(DtrakError, match="Another process"):
        build_features(fresh, Local(1))


def test_features_without_their_index_are_no_other_fingerprint(fresh):
    build_features(fresh)
    with pytest.raises(DtrakError, match="is not built") as told:
        Attributor(fresh).index("trak")
    assert "build" in told.value.hint


def test_verify_finds_and_repairs_damage(fresh):
    build_indexes(fresh, build_features(fresh, Local(1)))
    assert verify_study(fresh) == []
    shard = next(fresh.features.glob("*/shard-00000.npy"))
    shard.write_bytes(shard.read_bytes()[:-4] + b"\0\0\0\1")
    next(fresh.index.glob("*/vectors.faiss")).write_bytes(b"junk")
    problems = verify_study(fresh, repair=True)
    assert len(problems) == 2
    build_indexes(fresh, build_features(fresh, Local(1)))
    assert verify_study(fresh) == []


def test_a_full_disk_leaves_nothing_corrupt(fresh, monkeypatch):
    import dtrak.utils.files

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(dtrak.utils.files.os, "fsync", full)
        with pytest.raises(DtrakError, match="No space left"):
            build_features(fresh, Local(1))
    assert not list(fresh.root.rglob("features/**/*.part"))
    stores = build_features(fresh, Local(1))
    assert all(store.verify() == [] for store in stores)


def test_index_of_a_built_study(tiny):
    for folder in tiny.index.iterdir():
        if folder.is_dir():
            index = AttributionIndex(folder, FeatureStore.open(tiny.features / folder.name))
            np.testing.assert_allclose(index.norms, np.linalg.norm(index.features, axis=1), rtol=1e-5)


def test_only_what_the_dead_left_unfinished_is_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    mine, theirs = f"{_host()}-{os.getpid()}", f"elsewhere-{dead.pid}"
    for writer in (mine, theirs, f"{_host()}-{dead.pid}"):
        (tmp_path / f"shard-00000.npy.{writer}.part").write_bytes(b"half")
    remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(f"shard-00000.npy.{w}.part" for w in (mine, theirs))
