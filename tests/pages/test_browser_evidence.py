"""Ablate, Compare and the evidence in a real browser: toggle, pin, compare, scrub, export."""

import json
import re
from pathlib import Path

import numpy as np
from playwright.sync_api import Page, expect

from dtrak.analysis.evidence import split_by_timestep
from dtrak.config import load_study
from dtrak.methods.attributor import Attributor
from dtrak.methods.queries import generate_query
from dtrak.methods.settings import Setting
from dtrak.models.generation import GenerationSettings
from dtrak.study.folder import StudyFolder
from tests.browser import choose, ids, open_page, pictures_load, top_tile, visit


def visit_file(page: Page, path: Path) -> Page:
    page.set_content(path.read_text())
    pictures_load(page)
    return page


def test_a_toggle_changes_the_ranking_as_the_library_says(context, server, built, source, monkeypatch):
    monkeypatch.setenv("DTRAK_WORKSPACE", str(built))
    page = context.new_page()
    open_page(page, server, "ablate", 31)
    before = ids(page, ".proponent button")
    choose(page, "Output function", "l1-norm")
    expect(page.get_by_text("Overlap with previous")).to_be_visible(timeout=60_000)
    page.wait_for_function("!document.querySelector('[data-testid=stProgress]')")
    attributor = Attributor(StudyFolder(load_study(str(source / "tiny.yaml"))))
    query = generate_query(attributor, GenerationSettings(31, 6, attributor.model.names[0], 1.0))
    setting = Setting("dtrak", output="l1-norm", timesteps=5, damping=0.3162)
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
    expect(page.get_by_role("group", name=re.compile("^TRAK · LDS"))).to_be_visible(timeout=60_000)
    expect(page.get_by_role("group", name=re.compile("^D-TRAK · LDS"))).to_be_visible()
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
    query = generate_query(attributor, GenerationSettings(34, 6, attributor.model.names[0], 1.0))
    setting = Setting("dtrak", damping=10.0**-1)
    split = split_by_timestep(attributor, setting, query, attributor.features(query, [setting]))
    best = attributor.table.train_ids[int(split.scores[0].argmax())]
    expect(gallery.first).to_have_attribute("data-id", best, timeout=30_000)


def test_exports_hold_what_the_page_shows(context, server, tmp_path):
    page = context.new_page()
    open_page(page, server, "attribution", 35)
    tile = top_tile(page)
    best = tile.get_attribute("data-id")
    page.get_by_role("radio", name="Downloads").click()
    for name, suffix in (("Download CSV", "csv"), ("Download JSON", "json"), ("Download report (HTML)", "html")):
        with page.expect_download() as download:
            page.get_by_role("button", name=name, exact=True).click()
        assert download.value.suggested_filename.endswith(suffix)
        download.value.save_as(tmp_path / f"export.{suffix}")
    assert (tmp_path / "export.csv").read_text("utf-8-sig").splitlines()[1].split(",")[1] == best
    assert json.loads((tmp_path / "export.json").read_text())["proponents"][0]["id"] == best
    report = visit_file(context.new_page(), tmp_path / "export.html")
    assert best in report.content()
