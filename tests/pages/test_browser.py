"""The app in a real browser: what a person does, end to end, on the tiny study."""

import json
import re
from urllib.parse import quote

from playwright.sync_api import expect

from dtrak.app.views import format_score
from dtrak.config import load_study
from dtrak.methods.attributor import Attributor
from dtrak.methods.queries import generate_query
from dtrak.methods.settings import Setting
from dtrak.models.generation import GenerationSettings
from dtrak.study.folder import StudyFolder
from tests.browser import choose, generate, pictures_load, settle, top_tile, visit
from tests.conftest import drawn_image


def test_from_seed_to_the_librarys_answer(context, server, built, source, monkeypatch):
    monkeypatch.setenv("DTRAK_WORKSPACE", str(built))
    page = context.new_page()
    generate(page, server, 11)
    pictures_load(page)
    page.get_by_role("button", name="Attribute").click()
    tile = top_tile(page)
    pictures_load(page)
    attributor = Attributor(StudyFolder(load_study(str(source / "tiny.yaml"))))
    label = attributor.model.names[0]
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
    expect(page.get_by_text(re.compile("according to TRAK"))).to_be_visible(timeout=60_000)  # D-TRAK's tiles are gone
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
    tile.press("ArrowRight")
    expect(page.locator(".proponent button").nth(1)).to_be_focused()
    tile.click()
    panel = page.locator(".st-key-panel")
    expect(panel.get_by_text(re.compile("rank 1 of 14"))).to_be_visible(timeout=60_000)
    page.locator(".proponent button.chosen").press("Escape")
    expect(panel).to_have_count(0, timeout=60_000)
    top_tile(page).click()
    panel.get_by_role("button", name="Open its page").click()
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
    expect(page.get_by_text("Cancelled. Nothing was saved.")).to_be_visible(timeout=5_000)
    assert set((built / "tiny" / "runs").glob("*")) == before


def test_a_downloaded_png_restores_its_settings(context, server, tmp_path):
    page = context.new_page()
    generate(page, server, 14)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download PNG", exact=True).click()
    download.value.save_as(tmp_path / "image.png")
    other = context.new_page()
    visit(other, f"{server}/generate")
    other.locator("input[type=file]").set_input_files(tmp_path / "image.png")
    expect(other.get_by_text("Settings restored")).to_be_visible(timeout=30_000)
    expect(other.get_by_role("spinbutton", name="Seed")).to_have_value("14")


def test_junk_is_refused_with_a_way_out(context, server, tmp_path):
    (tmp_path / "junk.png").write_bytes(b"this is no picture")
    page = context.new_page()
    generate(page, server, 60)
    visit(page, f"{server}/attribution")
    page.get_by_text("Choose another image").click()
    page.locator("input[type=file]").set_input_files(tmp_path / "junk.png")
    page.get_by_role("button", name="Attribute this image").click()
    expect(page.get_by_text("This image cannot be used")).to_be_visible()
    page = visit(context.new_page(), f"{server}/generate")
    page.locator("input[type=file]").set_input_files(tmp_path / "junk.png")
    expect(page.get_by_text("contains no dtrak settings")).to_be_visible()


def test_an_upload_is_attributed(context, server, tmp_path):
    drawn_image(50).resize((40, 30)).save(tmp_path / "mine.jpg")
    page = context.new_page()
    generate(page, server, 61)
    visit(page, f"{server}/attribution")
    page.get_by_text("Choose another image").click()
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


def test_pages_fit_a_phone_in_light_and_dark(browser, server):
    page = browser.new_context(viewport={"width": 390, "height": 800}).new_page()
    for name in ("", "generate", "attribution", "ablate", "compare", "explore", "evaluate", "ledger", "about"):
        visit(page, f"{server}/{name}")
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.wait_for_function(
                """light => {
                    const app = getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor
                    return (app.match(/\\d+/g).slice(0, 3).reduce((sum, v) => sum + Number(v), 0) > 600) === light
                }""",
                arg=scheme == "light",
            )
            settle(page)
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.context.close()


def test_unknown_ids_have_a_way_out(context, server):
    page = visit(context.new_page(), f"{server}/attribution?run=doesnotexist")
    expect(page.get_by_text("There is no run")).to_be_visible()
    page = visit(context.new_page(), f"{server}/sample?id=doesnotexist")
    expect(page.get_by_role("link", name="Go to Attribution")).to_be_visible()


PAYLOAD = "![a](http://127.0.0.9:9/a.png)[b](http://127.0.0.9:9/b)<img src=http://127.0.0.9:9/c.png>"


def test_nothing_in_a_url_is_loaded_or_becomes_a_link(context, server):
    page, elsewhere = context.new_page(), []
    page.on("request", lambda r: elsewhere.append(r.url) if not r.url.startswith((server, "data:", "blob:")) else None)
    generate(page, server, 62)
    text = quote(PAYLOAD)
    for path in (
        f"attribution?run={text}", f"compare?run={text}", f"compare?lanes={text}", f"compare?pins={text}",
        f"ablate?setting=dtrak,checkpoint={text}", f"ablate?setting={text}", f"sample?id={text}",
        f"ledger?creator={text}", f"generate?prompt={text}", f"evaluate?queries={text}",
        f"?study={text}",
    ):  # fmt: skip
        visit(page, f"{server}/{path}")
        assert page.locator("[data-testid=stMain] a[href*='127.0.0.9']").count() == 0, path
        assert page.locator("img[src*='127.0.0.9']").count() == 0, path
    assert elsewhere == []


def test_the_policy_stops_what_would_slip_through(browser, server):
    context = browser.new_context()
    page, failed = visit(context.new_page(), server), []
    page.on("requestfailed", lambda r: failed.append((r.url, r.failure)))
    page.evaluate("document.body.append(Object.assign(new Image(), {src: 'http://127.0.0.9:9/slipped.png'}))")
    page.wait_for_timeout(500)
    assert failed == [("http://127.0.0.9:9/slipped.png", "csp")]
    context.close()
