"""The HTML report, in a real browser: it sorts, it filters, it says nothing on the console, and it asks for nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import shorten_attacks

import purify
from purify.attacks import ThreatModel
from purify.eval import Report, Settings, evaluate
from purify.eval.html import render_html, reproduce, save_report, verdict_in_words


@pytest.fixture(scope="module")
def report(defended: purify.PurifiedClassifier) -> Report:
    digits = purify.load_dataset("digits", "test").first(40)
    settings = Settings(suite="fast", norm_images=8, check_images=6, check_steps=3, random_draws=50, pictures=20)
    about = {"data": "digits", "split": "test", "classifier": "digits-shufflenet", "purifier": "digits-dsae"}
    threat = ThreatModel("linf", 0.15)
    with pytest.MonkeyPatch.context() as patch:
        shorten_attacks(patch)
        return evaluate(defended, digits, None, threat, settings=settings, name="digits-dsae", about=about, quiet=True)


def test_it_stands_alone(report: Report, tmp_path: Path) -> None:
    page, markdown, figures = save_report(report, tmp_path / "report.html")
    html = page.read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', html)
    assert "@import" not in html
    assert "url(http" not in html
    assert str(report.worst_case) in markdown.read_text(encoding="utf-8")
    assert json.loads(figures.read_text(encoding="utf-8"))["worst_case"]["right"] == report.worst_case.right
    assert str(tmp_path) not in html


def test_the_verdict_is_in_plain_words(report: Report) -> None:
    words = " ".join(verdict_in_words(report))
    assert f"{100 * report.clean.share:.1f} %" in words
    assert "at most" in words
    assert ("Do not rely" in words) == bool(report.failed)
    assert reproduce(report).startswith("purify evaluate --data digits --classifier digits-shufflenet --purifier digits-dsae")


def test_a_row_that_a_table_trains_is_made_again_by_that_table(report: Report) -> None:
    """`purify evaluate` knows neither a dense autoencoder without a checkpoint nor a classifier that a table trains."""

    def again(name: str, eps: float, **about: str) -> str:
        configuration = {**report.configuration, "about": {**report.configuration["about"], **about}}
        return reproduce(dataclasses.replace(report, name=name, threat=ThreatModel("linf", eps), configuration=configuration))

    few = "--images 40 --suite fast --checks 6 --seed 0"
    assert again("dense", 0.15, purifier="dense") == f"purify tables --data digits --rows dense {few}"
    assert again("linear", 0.15, purifier="linear") == f"purify tables --data digits --rows linear --full {few}"
    unseen = again("none, mnist-shufflenet", 0.3, data="mnist", purifier="none", classifier="mnist-shufflenet")
    assert unseen == f"purify tables --data mnist-0.3 --rows 'none, mnist-shufflenet' {few}"
    assert again("dense", 0.07, purifier="dense").startswith("# a row of a table, whose dense is trained")


def test_the_page_says_whose_smallest_norm_it_is(report: Report) -> None:
    assert report.norms is not None
    page = " ".join(render_html(report).split())
    assert f"the least that any attack found, for {report.norms.n} of the first 8 images" in page


def test_names_cannot_break_the_page(report: Report) -> None:
    html = render_html(dataclasses.replace(report, name="<script>alert(1)</script>"))
    assert "<script>alert" not in html


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Whatever Chromium is installed, driven by Playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no browser test: playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    path = os.environ.get("PURIFY_BROWSER") or next((found for name in names if (found := shutil.which(name))), None)
    with playwright.sync_playwright() as running:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-quic", "--no-first-run"]
        try:
            opened = running.chromium.launch(executable_path=path, args=arguments)
        except playwright.Error as error:
            if path is not None:
                raise
            pytest.skip(
                f"no browser test: neither a Chromium in the path nor one of playwright's own ({str(error).splitlines()[0]})"
            )
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, report: Report, tmp_path: Path) -> Iterator[Any]:
    file, *_ = save_report(report, tmp_path / "report.html")
    page = browser.new_page()
    page.messages, page.requests = [], []
    page.on("console", lambda message: page.messages.append(message.text))
    page.on("pageerror", lambda error: page.messages.append(str(error)))
    page.on("request", lambda request: page.requests.append(request.url))
    page.goto(file.as_uri())
    yield page
    assert page.messages == []
    assert [url for url in page.requests if not url.startswith(("data:", file.as_uri()))] == []
    page.close()


def test_the_table_sorts(page: Any, report: Report) -> None:
    def column() -> list[float]:
        return [float(text) for text in page.locator("#accuracy-table tbody tr td:nth-child(2)").all_inner_texts()]

    button = page.locator("#accuracy-table th:nth-child(2) button")
    button.click()
    assert column() == sorted(column())
    assert page.locator("#accuracy-table th:nth-child(2)").get_attribute("aria-sort") == "ascending"
    button.focus()
    page.keyboard.press("Enter")  # the keyboard does it as well
    assert column() == sorted(column(), reverse=True)
    assert round(100 * report.worst_case.share, 1) in column()


def test_the_gallery_filters(page: Any, report: Report) -> None:
    shown = page.locator(".gallery > li:visible")
    assert shown.count() == len(report.gallery) == 20
    for tag in sorted({tag for entry in report.gallery for tag in entry["tags"]}):
        page.get_by_label(tag, exact=True).check()
        expected = [entry["image"] for entry in report.gallery if tag in entry["tags"]]
        assert shown.count() == len(expected)
        assert f"{len(expected)} images shown" in page.locator("#shown").inner_text()
    page.get_by_label("all", exact=True).check()
    page.get_by_label("adaptive, the worst found").check()
    assert page.locator(".view[data-view=adaptive]:visible").count() == 20
    assert page.locator(".view[data-view=oblivious]:visible").count() == 0
    assert page.evaluate("[...document.images].every((image) => image.alt)")
    assert page.evaluate(
        "[...document.images].filter((i) => i.checkVisibility()).every((i) => !i.complete || i.naturalWidth === 8)"
    )


def test_it_fits_a_telephone_and_the_dark(page: Any) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert light != dark
    ink = page.evaluate("getComputedStyle(document.body).color")
    text = page.evaluate("getComputedStyle(document.querySelector('figure svg text')).fill")
    assert text == ink
