"""What the browser tests share: a server over the tiny study, a user, and what a person does on any page."""

import re

from playwright.sync_api import Page, expect


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
