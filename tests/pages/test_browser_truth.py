"""The measured truth in a real browser: Evaluate, the reliability card, the LDS that follows toggles, what-if."""

import re

from playwright.sync_api import expect

from tests.browser import choose, generate, open_page, pictures_load, settle, top_tile, visit


def test_evaluate_shows_both_kinds_of_queries(context, server):
    page = visit(context.new_page(), f"{server}/evaluate")
    expect(page.get_by_text("Based on 6 subset models")).to_be_visible(timeout=60_000)
    expect(page.get_by_text(re.compile("on generated images[:;]"))).to_be_visible()
    expect(page.locator("[data-testid=stPlotlyChart]")).to_have_count(2, timeout=60_000)
    page.get_by_role("radio", name="Held-out images").first.click()
    settle(page)
    expect(page.get_by_text(re.compile("on held-out images[:;]"))).to_be_visible()
    expect(page.get_by_text(re.compile("on generated images[:;]"))).to_have_count(0)
    assert "queries=Held-out" in page.url


def test_every_answer_carries_its_measured_reliability(context, server):
    page = context.new_page()
    run = open_page(page, server, "attribution", 51)
    card = page.locator(".st-key-trust-card")
    expect(card).to_contain_text("against 6 retrained models", timeout=60_000)
    visit(page, f"{server}/compare?run={run}")
    expect(page.get_by_role("group", name=re.compile("TRAK · .*LDS"))).to_have_count(2, timeout=60_000)
    page.get_by_role("link", name="How this was measured").click()
    expect(page.get_by_role("heading", name="Evaluate")).to_be_visible(timeout=60_000)


def test_the_score_of_the_setting_follows_the_toggles(context, server):
    page = context.new_page()
    open_page(page, server, "ablate", 52)
    metric = page.get_by_test_id("stMetric").filter(has_text="LDS of this setting")
    expect(metric).to_be_visible(timeout=60_000)
    before = metric.inner_text()
    choose(page, "K, timesteps", "1")
    expect(metric).not_to_have_text(before, timeout=60_000)
    expect(metric.get_by_test_id("stMetricDelta")).to_be_visible()


def test_what_if_predicts_and_retrains(context, server):
    page = context.new_page()
    generate(page, server, 53)
    page.get_by_role("button", name="Attribute").click()
    top_tile(page)
    page.get_by_role("radio", name="What if").click()
    expect(page.get_by_text(re.compile("of random sets of the same size"))).to_be_visible(timeout=60_000)
    page.get_by_role("button", name="Retrain and show").click()
    expect(page.get_by_text(re.compile("Retrained for 1 training step"))).to_be_visible(timeout=240_000)
    expect(page.get_by_text(re.compile("embedding cosine .* to 'all images'"))).to_have_count(2)
    pictures_load(page)
    url = page.url
    visit(page, url)
    expect(page.get_by_text(re.compile("Retrained for 1 training step"))).to_be_visible(timeout=60_000)


def test_a_creators_statement_is_exported(context, server):
    page = context.new_page()
    open_page(page, server, "ledger", 54)
    expect(page.get_by_text(re.compile("of the training images .* are by"))).to_be_visible(timeout=60_000)
    visit(page, f"{server}/ledger?creator=artist+2")
    expect(page.get_by_text(re.compile("are by artist 2"))).to_be_visible(timeout=60_000)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download statement (HTML)").click()
    text = download.value.path().read_text()
    assert "are by artist 2" in text
    assert "Measured reliability of the method" in text
