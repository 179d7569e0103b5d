"""All engines give the same bytes, even if workers crash or nodes are lost."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from dtrak.build import features as building
from dtrak.build.features import build_features
from dtrak.build.retrain import retrain_subsets
from dtrak.config import load_study
from dtrak.data import prepare
from dtrak.evaluation.removal import Removal, Task, draw_all, drawn
from dtrak.evaluation.subsets import query_set
from dtrak.execution.engines import Local, local
from dtrak.execution.ray_engine import Ray
from dtrak.models.generation import GenerationSettings
from dtrak.study.folder import StudyFolder
from dtrak.utils.errors import DtrakError
from tests.execution import tasks
from tests.helpers import call, hashes


@pytest.fixture(scope="module")
def cluster():
    """Two nodes on loopback, each with one CPU."""
    pytest.importorskip("ray", reason="needs Ray: pip install -r requirements-ray.txt")
    before = os.environ.get("RAY_AUTH_MODE")
    os.environ["RAY_AUTH_MODE"] = "disabled"  # ignore the token of another cluster
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"127.0.0.1:{port}"
    head = start_node("--head", f"--port={port}", "--include-dashboard=false", "--disable-usage-stats")
    wait_for(lambda: socket.create_connection(("127.0.0.1", port), 1).close())
    other = start_node(f"--address={address}")
    time.sleep(5)
    NODES[:] = [head.pid, other.pid]
    yield address
    sys.modules["ray"].shutdown()  # this process stays connected until then
    stop_node(other)
    stop_node(head)
    os.environ.pop("RAY_AUTH_MODE")
    if before:
        os.environ["RAY_AUTH_MODE"] = before


@pytest.fixture(scope="module")
def prepared(source, tmp_path_factory):
    """A workspace with the data of the tiny study."""
    workspace = tmp_path_factory.mktemp("workspace")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DTRAK_WORKSPACE", str(workspace))
        folder = StudyFolder(load_study(str(source / "tiny.yaml")))
        prepare(folder.study, folder.data)
    return workspace


@pytest.fixture
def fresh(prepared, source, monkeypatch):
    """The study with nothing built, in the same workspace for all tests: the cluster's workers belong to one."""
    monkeypatch.setenv("DTRAK_WORKSPACE", str(prepared))
    folder = StudyFolder(load_study(str(source / "tiny.yaml")))
    yield folder
    for made in folder.root.iterdir():
        if made.is_dir() and made != folder.data:
            shutil.rmtree(made)


NODES: list[int] = []


def start_node(*options):
    command = [os.path.join(os.path.dirname(sys.executable), "ray"), "start", "--block", "--num-cpus=1"]
    return subprocess.Popen(
        [*command, "--node-ip-address=127.0.0.1", *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"},  # not behind the other tests
    )


def stop_node(process):
    """Lose a node: all its processes are killed at once."""
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True).stdout
    for child in children.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(child), signal.SIGKILL)
    process.kill()
    process.wait(30)


def wait_for(connect, seconds=60):
    for _ in range(seconds):
        try:
            return connect()
        except OSError:
            time.sleep(1)
    raise TimeoutError


def test_both_nodes_work_and_a_killed_worker_is_made_good(cluster, tmp_path):
    engine = Ray(cluster)
    found = list(engine.results(tasks.on_cluster, (str(tmp_path),), [1, 2, "die", 3, *["where"] * 12]))
    assert {1, 4, 9, "lived"} <= set(found)
    assert len(set(found) - {1, 4, 9, "lived"}) == 2  # nodes
    assert list(engine.results(tasks.on_cluster, (str(tmp_path),), [])) == []


def test_the_connection_is_kept_for_the_same_folders(cluster, tmp_path, monkeypatch):
    def job():
        return next(Ray(cluster).results(tasks.on_cluster, (str(tmp_path),), ["job"]))

    first = job()
    assert job() == first
    monkeypatch.setenv("DTRAK_WORKSPACE", str(tmp_path))
    assert job() != first


def test_what_goes_wrong_on_a_cluster_is_told(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr("dtrak.execution.ray_engine.RETRIES", 1)  # each takes a new worker
    with pytest.raises(DtrakError, match="without an error message"):
        list(Ray(cluster).results(tasks.on_cluster, (str(tmp_path),), ["always"]))
    for impossible in (Ray(cluster, threads=64), Ray(cluster, gpus=1)):
        with pytest.raises(DtrakError, match="No node"):
            list(impossible.results(tasks.on_cluster, (str(tmp_path),), [1]))
    with pytest.raises(DtrakError, match="no") as refused:
        list(Ray(cluster).results(tasks.on_cluster, (str(tmp_path),), ["refuse"]))
    assert refused.value.hint == "ask otherwise"


def _workers():
    """Process ids of this cluster's busy workers."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True).stdout.splitlines()[1:]
    split = [line.split(None, 2) for line in listed]
    ours = set(NODES)
    for _ in range(4):  # raylets and workers, below the commands that started the nodes
        ours |= {int(pid) for pid, parent, _ in split if int(parent) in ours}
    return [int(pid) for pid, _, arguments in split if int(pid) in ours and "ray::_work" in arguments]


def test_features_are_the_same_bytes_though_a_worker_and_a_node_are_lost(fresh, cluster, monkeypatch):
    monkeypatch.setattr(building, "SHARD_SIZE", 2)
    build_features(fresh, Local(1))
    alone = hashes(fresh.features)
    fresh.features.rename(fresh.root / "alone")
    extra = start_node(f"--address={cluster}")
    time.sleep(5)
    killed, removed = [], []

    def report(part, done, total):
        if done and not killed:
            for worker in _workers()[:1]:
                os.kill(worker, signal.SIGKILL)
                killed.append(worker)
        elif killed and not removed:
            removed.append(extra)
            stop_node(extra)

    stores = build_features(fresh, Ray(cluster), report=report)
    assert killed
    assert removed
    assert all(store.complete for store in stores)
    assert hashes(fresh.features) == alone


def test_retrained_models_and_their_pictures_are_the_same(fresh, cluster):
    query_set(fresh)
    wanted = [
        Task(Removal.of(fresh, ids, None, None), (GenerationSettings(7, 3, "round"),))
        for ids in ([], fresh.table.train_ids[:2])
    ]
    found = []
    for engine in (Local(1), Ray(cluster)):
        retrain_subsets(fresh, "lds", 2, 1, engine)
        draw_all(fresh, wanted, engine)
        pictures = [drawn(fresh, task.removal, task.settings).tobytes() for task in wanted]
        found.append((hashes(fresh.root / "truth"), pictures))
        for name in ("truth/lds", "retrained"):
            (fresh.root / name).rename(fresh.root / f"gone-{len(found)}-{os.path.basename(name)}")
    assert found[0] == found[1]


def test_the_command_line_takes_an_engine(fresh, source, cluster, tmp_path):
    study, ray, url = str(source / "tiny.yaml"), ("--engine", "ray", "--address", cluster), f"file://{tmp_path / 'url'}"
    assert call("build", study, "--index-only", *ray, "--artefacts", url).exit_code == 0
    assert list((tmp_path / "url" / "outputs").rglob("shard-*.npy"))
    assert "--address" in call("build", study, "--address", "x").output
    with pytest.raises(DtrakError, match="No Ray cluster"):
        call("retrain", study, "--subsets", 2, "--engine", "ray", "--address", "127.0.0.1:1")


def test_threads_are_shared_out(monkeypatch):
    monkeypatch.setattr("dtrak.execution.engines.cores", lambda: 8)
    assert local(None, 1, "cpu") == Local(8, 1)
    assert local(None, 4, "cpu") == Local(2, 4)
    assert local(3, 2, "cpu") == Local(3, 2)
    assert local(None, 1, "cuda:1") == Local(1, 1)
    monkeypatch.setattr("dtrak.execution.engines.visible_gpus", lambda: ("0", "2", "5"))
    assert local(None, 1, "cuda") == Local(3, 1, ("0", "2", "5"))
    assert local(2, 4, "cuda") == Local(2, 4, ("0", "2"))
    assert local(1, 1, "cuda") == Local(1, 1)
    for workers, device in ((4, "cuda"), (2, "cuda:1")):
        with pytest.raises(DtrakError, match="workers requested"):
            local(workers, 1, device)


def test_each_process_has_a_gpu_and_threads_of_its_own():
    """Checks which GPU each process is given; needs no GPU."""
    found = set(Local(2, 2, ("3", "7")).results(tasks.device_seer, (), range(6)))
    assert found == {("3", 2, None), ("7", 2, None)}


def test_more_threads_change_the_last_digits_at_most(fresh):
    one = build_features(fresh, Local(1))[0].read()
    fresh.features.rename(fresh.root / "one")
    two = build_features(fresh, Local(2, 2))[0].read()
    assert abs(two - one).max() <= 1e-5 * abs(one).max()


def test_without_ray_the_message_names_the_way_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DtrakError, match="not installed") as missing:
        list(Ray().results(tasks.device_seer, (), [1]))
    assert "requirements-ray.txt" in missing.value.hint
