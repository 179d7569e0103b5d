"""A tiny study that tests build for real: sixteen drawn images and a network of 30,000 weights."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pytest
import torch
import yaml
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from filelock import FileLock
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from dtrak.build.features import build_features, build_indexes
from dtrak.build.measure import evaluate_study
from dtrak.build.retrain import retrain_subsets
from dtrak.config import load_study
from dtrak.data import prepare
from dtrak.execution.engines import Local
from dtrak.methods.attributor import Attributor
from dtrak.methods.query import Query
from dtrak.study.folder import StudyFolder
from tests.stable_diffusion import build_paintings

ROOT = Path(__file__).resolve().parent.parent
KNOWN_404 = re.compile(r"/(_stcore/(health|host-config))$")
SIZE = 16


def drawn_image(number: int) -> Image.Image:
    """A picture that is its own: a background, a rectangle, a disc."""
    random = np.random.default_rng(number)
    pixels = np.tile(random.integers(0, 256, 3, np.uint8), (SIZE, SIZE, 1))
    x, y = random.integers(0, SIZE // 2, 2)
    pixels[y : y + SIZE // 2, x : x + SIZE // 2] = random.integers(0, 256, 3)
    return Image.fromarray(pixels)


def write_images(folder, count=16):
    """A folder of two labels with metadata."""
    lines = ["file_name,label,caption,creator,license"]
    for i in range(count):
        label = "round" if i % 2 else "square"
        (folder / label).mkdir(parents=True, exist_ok=True)
        drawn_image(i).save(folder / label / f"{i:02d}.png")
        lines.append(f"{label}/{i:02d}.png,{label},picture {i},artist {i % 3},CC0")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")


UNET = {
    "sample_size": SIZE,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
    "attention_head_dim": 8,
    "num_class_embeds": 3,
}


def write_model(folder, classes=3, seed=0):
    """A diffusers pipeline with random weights."""
    torch.manual_seed(seed)
    unet = UNet2DModel(**{**UNET, "num_class_embeds": classes})
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder)


def _sets(outputs, **changes):
    return [{"output": o, "timesteps": 5, "projection_dim": 64, "apart": True, **changes} for o in outputs]


BOTH = ("mean-squared-l2-norm", "loss")
ABLATIONS = [
    *_sets(("mean", "l1-norm", "linf-norm")),
    *_sets(BOTH, first_draw=1),
    *_sets(BOTH, strategy="cumulative"),
    *_sets(BOTH, model="checkpoint-0.50", timesteps=1, apart=False),
    *_sets(BOTH, model="member-1", timesteps=1),
]


def write_study(folder, **changes):
    """The YAML of the tiny study."""
    content = {
        "title": "Tiny",
        "data": {"kind": "imagefolder", "path": "images", "holdout": 0.125},
        "model": {
            "path": "model",
            "unet": UNET,
            "checkpoints": ["checkpoint-0.50"],
            "ensemble": ["member-1"],
            "classes": {"round": 1, "square": 2},
            "null_class": 0,
        },
        "resolution": SIZE,
        "training": {"steps": 3, "batch_size": 4, "warmup": 1},
        "features": [
            {"output": "mean-squared-l2-norm", "timesteps": 5, "projection_dim": 64, "apart": True},
            {"output": "loss", "timesteps": 5, "projection_dim": 64, "apart": True},
            {"output": "loss", "timesteps": 5, "projection_dim": 64, "projection_seed": 1},
        ],
        "ablations": ABLATIONS,
        "truth": {"generated": 4},
        "unrelated": {"drawings": 20, "count": 20},
    } | changes
    (folder / "tiny.yaml").write_text(yaml.safe_dump(content))
    return folder / "tiny.yaml"


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """A folder that all workers of this run share; what is in it is made once, under its lock."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if os.environ.get("PYTEST_XDIST_WORKER") else own


@pytest.fixture(scope="session")
def source(shared):
    """Images, model and YAML, written once; not to be changed."""
    folder = shared / "source"
    with FileLock(shared / "source.lock"):
        if not (folder / "tiny.yaml").exists():
            write_images(folder / "images")
            write_model(folder / "model")
            write_model(folder / "checkpoint-0.50", seed=1)
            write_model(folder / "member-1", seed=2)
            write_study(folder)
    return folder


@pytest.fixture(scope="session")
def built(source, shared, tmp_path_factory):
    """A workspace with the tiny study, prepared, built and judged by six subset models; not to be changed."""
    with FileLock(shared / "built.lock"), pytest.MonkeyPatch.context() as patch:
        if not (shared / "built.done").exists():
            patch.setenv("DTRAK_WORKSPACE", str(shared / "built"))
            patch.setattr("dtrak.evaluation.measure.HALF_RESAMPLES", 60)
            build_tiny(StudyFolder(load_study(str(source / "tiny.yaml"))))
            (shared / "built.done").touch()
    workspace = tmp_path_factory.mktemp("workspace")
    shutil.copytree(shared / "built", workspace, dirs_exist_ok=True)
    before = os.environ.get("DTRAK_WORKSPACE")
    os.environ["DTRAK_WORKSPACE"] = str(workspace)
    yield workspace
    os.environ.pop("DTRAK_WORKSPACE", None)
    if before:
        os.environ["DTRAK_WORKSPACE"] = before


def build_tiny(folder):
    """Everything that a study can have, on the tiny study."""
    prepare(folder.study, folder.data)
    build_indexes(folder, build_features(folder, Local(1)))
    build_features(folder, Local(1), sets=folder.study.later_sets)
    retrain_subsets(folder, "lds", 6, 1, Local(1))
    retrain_subsets(folder, "lds", 3, 2, Local(1))
    retrain_subsets(folder, "remove-20", 4, 1, Local(1))
    retrain_subsets(folder, "fit", 2, 1, Local(1))
    evaluate_study(folder, Local(1))


@pytest.fixture(scope="session")
def paintings(tmp_path_factory):
    """A tiny Stable Diffusion fine-tuned by LoRA and built, with its workspace; not to be changed."""
    folder = tmp_path_factory.mktemp("paintings")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DTRAK_WORKSPACE", str(folder / "workspace"))
        build_paintings(folder)
    return folder


@pytest.fixture
def painted(paintings, monkeypatch):
    """The study of the tiny Stable Diffusion."""
    monkeypatch.setenv("DTRAK_WORKSPACE", str(paintings / "workspace"))
    return StudyFolder(load_study(str(paintings / "paintings.yaml")))


@pytest.fixture
def tiny(built, source, monkeypatch):
    """The built study."""
    monkeypatch.setenv("DTRAK_WORKSPACE", str(built))
    return StudyFolder(load_study(str(source / "tiny.yaml")))


@pytest.fixture
def attributor(tiny):
    """The built study, opened for queries."""
    return Attributor(tiny)


@pytest.fixture
def query(tiny):
    """A held-out image."""
    return Query(np.asarray(tiny.table.pixels[-1]), "round")


@pytest.fixture
def fresh(source, tmp_path, monkeypatch):
    """The study prepared in an empty workspace, nothing built."""
    monkeypatch.setenv("DTRAK_WORKSPACE", str(tmp_path / "workspace"))
    folder = StudyFolder(load_study(str(source / "tiny.yaml")))
    prepare(folder.study, folder.data)
    return folder


def chromium():
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


@pytest.fixture(scope="session")
def server(built, source):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    environment = {**os.environ, "DTRAK_WORKSPACE": str(built), "DTRAK_CONFIGS": str(source)}
    command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    for _ in range(240):
        try:
            urllib.request.urlopen(f"{url}/_stcore/health", timeout=1)
            break
        except OSError:
            time.sleep(0.5)
    yield url
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()


@pytest.fixture(scope="module")
def browser():
    """Chromium; closed after a file, as Playwright's event loop is in the way of other tests."""
    path = chromium()
    assert path, "Chromium is needed: sh scripts/chromium.sh"
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    expect.set_options(timeout=20_000)  # where tests share two slow cores, five seconds are short
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def context(browser):
    """A user; at the end no request may have left this machine, and no script may have failed."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(60_000)
    requests, failures = [], []
    context.on("request", lambda request: requests.append(request.url))
    context.on("weberror", lambda error: failures.append(str(error.error)))
    context.on(
        "response", lambda r: failures.append(r.url) if r.status >= 400 and not KNOWN_404.search(r.url) else None
    )
    yield context
    context.close()
    outside = [u for u in requests if not u.startswith(("http://127.0.0.1", "ws://127.0.0.1", "data:", "blob:"))]
    assert outside == []
    assert failures == []


def pytest_collection_modifyitems(items):
    """Mark what drives a browser or starts Ray; such files come first, as they take longest."""
    for item in items:
        if item.path.name.startswith("test_browser"):
            item.add_marker(pytest.mark.browser)
        if item.path.name == "test_engines.py":
            item.add_marker(pytest.mark.ray)
    items.sort(key=lambda item: not (item.get_closest_marker("browser") or item.get_closest_marker("ray")))
