"""The HTML report in a real browser: headless Chromium, driven by Playwright.

Chromium is the machine's own (the variable CHROME names another); `.ci/run` installs one where
there is none. Without a browser, or without Playwright, these tests are skipped and say so.
"""

import os
import shutil

import numpy as np
import pytest
from tests.made_up import evaluation_of, set_features

from retrieval.data.photo_sets import PhotoSet
from retrieval.data.positives import Positives
from retrieval.drawing.html_report.page import write_report
from retrieval.features import LocalFeatures

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
QUERIES = 12


def features(row: int) -> LocalFeatures:
    rng = np.random.default_rng(row)
    return LocalFeatures(
        (rng.random((40, 2)) * (64, 48)).astype(np.float32),
        rng.normal(size=(40, 8)).astype(np.float32),
        np.linspace(1, 0, 40, dtype=np.float32),
        (64, 48),
        np.full(40, 8, np.float32),
    )


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="the report in a browser: Playwright is not installed"
    )
    chrome = os.environ.get("CHROME") or next(filter(None, map(shutil.which, NAMES)), None)
    if chrome is None:
        pytest.skip(
            f"the report in a browser: none found ({', '.join(NAMES)}; CHROME can name one); "
            "on Debian: apt-get install chromium"
        )
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chrome, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def report(photo, tmp_path):
    """A report of 12 queries: a third wrong, some helped and some hurt; 10 are in the gallery."""
    photos = PhotoSet(
        tmp_path,
        [photo(f"queries/@{10 * i}@{7 * i}@.jpg", seed=i) for i in range(QUERIES)],
        [photo(f"database/@{10 * i}@{7 * i + 3}@.jpg", seed=i) for i in range(QUERIES)],
        {"R": Positives([np.array([i]) for i in range(QUERIES)], [np.empty(0)] * QUERIES)},
    )
    first, second = np.arange(QUERIES), np.roll(np.arange(QUERIES), 1)
    right_before, right_after = np.arange(QUERIES) % 2 == 0, np.arange(QUERIES) % 3 > 0
    rankings = {
        step: np.where(right[:, None], np.stack([first, second], 1), np.stack([second, first], 1))
        for step, right in (("global", right_before), ("reranked", right_after))
    }
    run = evaluation_of(
        photos,
        rankings,
        num_inliers=np.zeros((QUERIES, 2), int),
        settings={"seed": 0},
        seconds={"global descriptors": 1.0},
        title="A report",
        features=set_features(features, features, photos),
    )
    write_report(tmp_path / "report.html", run, 10)
    return tmp_path / "report.html"


@pytest.fixture
def page(browser, report):
    """The opened report. At the end: it has asked for nothing but itself, and reported no error."""
    page = browser.new_page()
    requests, errors = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: errors.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(report.as_uri())
    yield page
    page.close()
    assert requests[0] == report.as_uri()
    assert all(url.startswith("data:") for url in requests[1:])
    assert errors == []


def visible(page) -> list[str]:
    return [card.get_attribute("id") for card in page.locator(".card:visible").all()]


def test_every_picture_on_the_page_is_decoded(page):
    page.wait_for_function("[...document.images].filter(i => i.src).every(i => i.complete)")
    widths = page.evaluate("[...document.images].filter(i => i.src).map(i => i.naturalWidth)")
    assert len(widths) == 10 * 3  # a query and two predictions each
    assert min(widths) > 0


def test_filters_show_as_many_cards_as_they_say(page):
    assert len(visible(page)) == 10
    for kind in ("wrong", "right", "helped", "hurt", "all"):
        button = page.locator(f"[data-filter={kind}]")
        button.focus()
        page.keyboard.press("Enter")
        assert button.get_attribute("aria-pressed") == "true"
        shown = page.locator(".card:visible")
        assert shown.count() == int(button.locator("span").inner_text()) > 0
        for card in shown.all():
            assert kind in card.get_attribute("data-kinds").split()
    assert page.locator("[aria-pressed=true]").count() == 1
    badges = page.locator(".card .badge:is(.wrong, .right)").all_inner_texts()
    assert badges == sorted(badges, key=lambda text: "right" in text)  # wrong ones first
    assert {badge[0] for badge in badges} == {"✓", "✗"}


def test_right_and_wrong_differ_in_colour(page):
    colours = [
        page.locator(f".tile.{kind} .frame").first.evaluate("e => getComputedStyle(e).borderColor")
        for kind in ("right", "wrong")
    ]
    assert colours == ["rgb(0, 114, 178)", "rgb(213, 94, 0)"]


@pytest.mark.parametrize("kind", ["attention", "matches"])
def test_a_picture_opens_and_escape_closes_it(page, kind):
    viewer = page.locator("#viewer")
    assert not viewer.is_visible()
    button = page.locator(f"[data-kind={kind}]").first
    button.click()
    assert viewer.is_visible()
    image = viewer.locator("img")
    page.wait_for_function("document.querySelector('#viewer img').naturalWidth > 0")
    assert image.evaluate("e => e.naturalWidth") > 500
    caption = viewer.locator("figcaption").inner_text()
    assert kind in caption.lower()
    assert image.get_attribute("alt") == caption
    page.keyboard.press("ArrowRight")
    assert viewer.locator("figcaption").inner_text() != caption
    page.keyboard.press("ArrowLeft")
    assert viewer.locator("figcaption").inner_text() == caption
    page.keyboard.press("Escape")
    assert not viewer.is_visible()
    assert button.evaluate("e => e === document.activeElement")


def test_a_mark_on_the_map_leads_to_its_card(page):
    page.locator("[data-filter=right]").click()
    hidden = page.locator(".card:not(:visible)").first.get_attribute("id")
    page.locator(f"a.mark[href='#{hidden}']").focus()
    page.keyboard.press("Enter")
    card = page.locator(f"#{hidden}")
    assert card.is_visible()
    assert page.url.endswith(f"#{hidden}")
    page.wait_for_function(
        "id => { const { top } = document.getElementById(id).getBoundingClientRect();"
        " return top >= 0 && top < innerHeight; }",
        arg=hidden,
    )
    assert page.locator("a.mark").count() == 10
    assert page.locator("g.mark").count() == 2  # not in the gallery


def test_the_map_comes_closer_and_its_scale_with_it(page):
    def metres_of_a_pixel() -> float:
        text = page.locator(".scale + span").inner_text()
        return float(text.removesuffix(" m")) / page.locator(".scale").bounding_box()["width"]

    mark = page.locator(".mark .target").first
    before, size = metres_of_a_pixel(), mark.bounding_box()["width"]
    left, right = (page.locator(f"[href='#query-{row}'] .target").bounding_box() for row in (0, 5))
    assert (right["x"] - left["x"]) * before == pytest.approx(50, rel=0.05)  # by their coordinates
    page.get_by_label("zoom in").click()
    assert metres_of_a_pixel() == pytest.approx(before / 2, rel=0.1)
    assert mark.bounding_box()["width"] == pytest.approx(size, rel=0.05)
    view = page.locator(".sheet svg").get_attribute("viewBox")
    page.locator(".sheet").hover(position={"x": 200, "y": 200})
    box = page.locator(".sheet").bounding_box()
    page.mouse.down()
    page.mouse.move(box["x"] + 260, box["y"] + 260, steps=4)
    page.mouse.up()
    assert page.locator(".sheet svg").get_attribute("viewBox") != view
    page.get_by_label("zoom out").click()
    assert metres_of_a_pixel() == pytest.approx(before, rel=0.1)


@pytest.mark.parametrize("width", [360, 1400])
def test_the_page_is_as_wide_as_its_window(page, width):
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
