"""The app in a real browser: what a person does, end to end, on the tiny study."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page, expect, sync_playwright

from dtrak.attribution import Attributor
from dtrak.config import load_study
from dtrak.evidence import split_by_timestep
from dtrak.queries import generate_query
from dtrak.sampling import GenerationSettings
from dtrak.settings import Setting
from dtrak.studies import StudyFolder
from dtrak.ui.views import format_score
from tests.conftest import drawn_image

ROOT = Path(__file__).resolve().parent.parent
KNOWN_404 = re.compile(r"/(_stcore/(health|host-config))$")


def chromium():
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


@pytest.fixture(scope="module")
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
    path = chromium()
    assert path, "Chromium is needed: sh scripts/chromium.sh"
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
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


def visit(page: Page, url: str) -> Page:
    page.goto(url, wait_until="domcontentloaded")
    settle(page)
    return page


def settle(page: Page) -> None:
    page.wait_for_selector("[data-testid=stApp][data-test-connection-state=CONNECTED]", timeout=60_000)
    page.wait_for_selector("[data-testid=stApp][data-test-script-state=notRunning]", timeout=60_000)
    expect(page.get_by_test_id("stException")).to_have_count(0)


def pictures_load(page: Page) -> None:
    page.wait_for_function("[...document.querySelectorAll('img')].every(i => i.complete && i.naturalWidth > 0)")
    assert page.evaluate("[...document.querySelectorAll('[data-testid=stImage] img')].every(i => i.alt)")


def generate(page: Page, server: str, seed: int, images: int = 1) -> None:
    visit(page, f"{server}/generate?seed={seed}&steps=6&images={images}")
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.get_by_role("button", name="Attribute")).to_have_count(images, timeout=60_000)


def top_tile(page: Page):
    tile = page.locator(".proponent button").first
    expect(tile).to_be_visible(timeout=60_000)
    return tile


def test_from_seed_to_the_librarys_answer(context, server, built, source, monkeypatch):
    monkeypatch.setenv("DTRAK_WORKSPACE", str(built))
    page = context.new_page()
    generate(page, server, 11)
    pictures_load(page)
    page.get_by_role("button", name="Attribute").click()
    tile = top_tile(page)
    pictures_load(page)
    attributor = Attributor(StudyFolder(load_study(str(source / "tiny.yaml"))))
    label = next(iter(attributor.model.classes))
    query = generate_query(attributor, GenerationSettings(11, 6, label, 1.0))
    answer = attributor.attribute(query, attributor.features(query, [Setting("dtrak")]), "dtrak")
    assert tile.get_attribute("data-id") == answer.proponents[0].record.id
    assert tile.get_attribute("data-score") == format_score(answer.proponents[0].score)


def test_a_copied_url_opens_the_same_view(context, browser, server):
    page = context.new_page()
    generate(page, server, 12)
    page.get_by_role("button", name="Attribute").click()
    top_tile(page)
    choose(page, "Method", "TRAK")
    page.wait_for_url(re.compile("method="))
    settle(page)
    found = top_tile(page)
    expected = (found.get_attribute("data-id"), found.get_attribute("data-score"))
    other = browser.new_context()
    again = top_tile(visit(other.new_page(), page.url))
    assert (again.get_attribute("data-id"), again.get_attribute("data-score")) == expected
    other.close()


def test_a_click_opens_the_training_image_whole(context, server):
    page = context.new_page()
    generate(page, server, 13)
    page.get_by_role("button", name="Attribute").click()
    tile = top_tile(page)
    sample_id = tile.get_attribute("data-id")
    tile.click()
    expect(page.get_by_text(sample_id)).to_be_visible(timeout=60_000)
    assert "id=" in page.url
    pictures_load(page)
    page.get_by_role("link", name="Back to the attribution").click()
    top_tile(page)


def test_cancel_stops_within_a_second_and_keeps_nothing(context, server, built):
    page = context.new_page()
    visit(page, f"{server}/generate?seed=900&steps=200&images=8")
    before = set((built / "tiny" / "runs").glob("*"))
    page.get_by_role("button", name="Generate", exact=True).click()
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("Cancelled. Nothing was kept.")).to_be_visible(timeout=5_000)
    assert set((built / "tiny" / "runs").glob("*")) == before


def test_a_downloaded_png_restores_its_settings(context, server, tmp_path):
    page = context.new_page()
    generate(page, server, 14)
    with page.expect_download() as download:
        page.get_by_role("button", name="PNG", exact=True).click()
    download.value.save_as(tmp_path / "image.png")
    other = context.new_page()
    visit(other, f"{server}/generate")
    other.locator("input[type=file]").set_input_files(tmp_path / "image.png")
    expect(other.get_by_text("Settings restored")).to_be_visible(timeout=30_000)
    expect(other.get_by_role("spinbutton", name="Seed")).to_have_value("14")


def test_junk_is_refused_with_a_way_out(context, server, tmp_path):
    (tmp_path / "junk.png").write_bytes(b"this is no picture")
    page = context.new_page()
    visit(page, f"{server}/attribution")
    page.locator("input[type=file]").set_input_files(tmp_path / "junk.png")
    page.get_by_role("button", name="Attribute this image").click()
    expect(page.get_by_text("This image cannot be used")).to_be_visible()
    page = visit(context.new_page(), f"{server}/generate")
    page.locator("input[type=file]").set_input_files(tmp_path / "junk.png")
    expect(page.get_by_text("carries no settings")).to_be_visible()


def test_an_upload_is_attributed(context, server, tmp_path):
    drawn_image(50).resize((40, 30)).save(tmp_path / "mine.jpg")
    page = context.new_page()
    visit(page, f"{server}/attribution")
    page.locator("input[type=file]").set_input_files(tmp_path / "mine.jpg")
    page.get_by_role("button", name="Attribute this image").click()
    top_tile(page)
    expect(page.get_by_text("Uploaded image")).to_be_visible()


def test_two_users_at_once_get_their_own_pictures(context, browser, server, built):
    other = browser.new_context()
    pages = [context.new_page(), other.new_page()]
    for page, seed in zip(pages, (21, 22), strict=True):
        visit(page, f"{server}/generate?seed={seed}&steps=60&images=2")
    for page in pages:
        page.get_by_role("button", name="Generate", exact=True).click()
    for page, seed in zip(pages, (21, 22), strict=True):
        expect(page.get_by_role("button", name="Attribute")).to_have_count(2, timeout=60_000)
        expect(page.get_by_text(f"Seed {seed + 1}")).to_be_visible()
    runs = [json.loads(p.read_text())["settings"] for p in (built / "tiny" / "runs").glob("*/run.json")]
    assert {21, 22, 23} <= {s["seed"] for s in runs if s}
    other.close()


def ids(page: Page, selector: str) -> list[str]:
    expect(page.locator(selector).first).to_be_visible(timeout=60_000)
    return page.locator(selector).evaluate_all("tiles => tiles.map(t => t.dataset.id)")


def open_page(page: Page, server: str, name: str, seed: int) -> str:
    """Generate a picture and open a page on it; gives the run's id."""
    generate(page, server, seed)
    page.get_by_role("button", name="Attribute").click()
    top_tile(page)
    run = re.search(r"run=(\w+)", page.url)[1]
    visit(page, f"{server}/{name}?run={run}")
    return run


def choose(page: Page, label: str, option: str) -> None:
    page.get_by_role("combobox", name=label).click()
    page.get_by_role("option", name=option, exact=True).click()
    settle(page)


def test_a_toggle_changes_the_ranking_as_the_library_says(context, server, built, source, monkeypatch):
    monkeypatch.setenv("DTRAK_WORKSPACE", str(built))
    page = context.new_page()
    open_page(page, server, "ablate", 31)
    before = ids(page, ".proponent button")
    choose(page, "Output function", "l1-norm")
    expect(page.get_by_text("Overlap, previous")).to_be_visible(timeout=60_000)
    page.wait_for_function("!document.querySelector('[data-testid=stProgress]')")
    attributor = Attributor(StudyFolder(load_study(str(source / "tiny.yaml"))))
    query = generate_query(attributor, GenerationSettings(31, 6, next(iter(attributor.model.classes)), 1.0))
    setting = Setting("dtrak", output="l1-norm", timesteps=5, damping=0.1)
    scores, _ = attributor.scores(setting, query, attributor.features(query, [setting]))
    order = [attributor.table.train_ids[i] for i in np.argsort(-scores)[: int((scores > 0).sum())]][:12]
    expect(page.locator(".proponent button").first).to_have_attribute("data-id", order[0])
    after = ids(page, ".proponent button")
    assert after == order
    assert after != before
    assert "output%3Dl1-norm" in page.url or "output=l1-norm" in page.url
    assert ids(visit(context.new_page(), page.url), ".proponent button") == order


def test_a_pinned_setting_is_compared(context, server):
    page = context.new_page()
    run = open_page(page, server, "ablate", 32)
    choose(page, "K, timesteps", "1")
    page.get_by_role("button", name="Pin to Compare").click()
    expect(page.get_by_text("Pinned:")).to_be_visible()
    page.get_by_role("link", name="Compare the pinned settings").click()
    expect(page.get_by_role("group", name=re.compile("K = 1"))).to_be_visible(timeout=60_000)
    assert f"run={run}" in page.url
    url = page.url
    lanes = [ids(page, f".lane button[data-lane='{n}']") for n in (0, 1)]
    assert lanes[0] != lanes[1]
    shared = len(set(lanes[0]) & set(lanes[1]))
    expect(page.locator("svg.links path")).to_have_count(shared)
    other = visit(context.new_page(), url)
    assert ids(other, ".lane button[data-lane='0']") == lanes[0]


def test_compare_by_default_puts_trak_beside_dtrak(context, server):
    page = context.new_page()
    open_page(page, server, "compare", 33)
    expect(page.get_by_role("group", name="TRAK", exact=True)).to_be_visible(timeout=60_000)
    expect(page.get_by_role("group", name="D-TRAK", exact=True)).to_be_visible()
    expect(page.get_by_text("Strongest disagreements")).to_be_visible()
    pictures_load(page)
    page.get_by_text("Why A rather than B").click()
    expect(page.get_by_role("heading", name="A rather than B", exact=True)).to_be_visible(timeout=60_000)


def test_scrubbing_ranks_by_a_band_of_timesteps(context, server, built, source, monkeypatch):
    monkeypatch.setenv("DTRAK_WORKSPACE", str(built))
    page = context.new_page()
    open_page(page, server, "attribution", 34)
    gallery = page.locator(".proponent").nth(1).locator("button")
    expect(gallery.first).to_be_visible(timeout=60_000)
    thumb = page.get_by_test_id("stSlider").filter(has_text="Timesteps").get_by_role("slider").last
    thumb.focus()
    for _ in range(4):
        page.keyboard.press("ArrowLeft")
    expect(page.get_by_text("1 of 5 parts")).to_be_visible(timeout=30_000)
    attributor = Attributor(StudyFolder(load_study(str(source / "tiny.yaml"))))
    query = generate_query(attributor, GenerationSettings(34, 6, next(iter(attributor.model.classes)), 1.0))
    setting = Setting("dtrak", damping=10.0**-1)
    split = split_by_timestep(attributor, setting, query, attributor.features(query, [setting]))
    best = attributor.table.train_ids[int(split.scores[0].argmax())]
    expect(gallery.first).to_have_attribute("data-id", best, timeout=30_000)


def test_exports_hold_what_the_page_shows(context, server, tmp_path):
    page = context.new_page()
    open_page(page, server, "attribution", 35)
    tile = top_tile(page)
    best = tile.get_attribute("data-id")
    for name, suffix in (("CSV", "csv"), ("JSON", "json"), ("Report (HTML)", "html")):
        with page.expect_download() as download:
            page.get_by_role("button", name=name, exact=True).click()
        assert download.value.suggested_filename.endswith(suffix)
        download.value.save_as(tmp_path / f"export.{suffix}")
    assert (tmp_path / "export.csv").read_text("utf-8-sig").splitlines()[1].split(",")[1] == best
    assert json.loads((tmp_path / "export.json").read_text())["proponents"][0]["id"] == best
    report = visit_file(context.new_page(), tmp_path / "export.html")
    assert best in report.content()


def visit_file(page: Page, path: Path) -> Page:
    page.set_content(path.read_text())
    pictures_load(page)
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_a_phone_in_light_and_dark(browser, server, scheme):
    context = browser.new_context(viewport={"width": 390, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    for name in ("", "generate", "attribution", "ablate", "compare", "about"):
        visit(page, f"{server}/{name}")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    background = page.evaluate("getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor")
    brightness = sum(int(v) for v in re.findall(r"\d+", background)[:3])
    assert (brightness > 600) == (scheme == "light")
    context.close()


def test_unknown_ids_have_a_way_out(context, server):
    page = visit(context.new_page(), f"{server}/attribution?run=doesnotexist")
    expect(page.get_by_text("There is no run")).to_be_visible()
    page = visit(context.new_page(), f"{server}/sample?id=doesnotexist")
    expect(page.get_by_role("link", name="Go to Attribution")).to_be_visible()
