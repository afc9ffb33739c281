"""The dashboard in a real browser: tiles, plots, slots and clients from the stream of figures."""

import json
import re
import threading
import urllib.request
from typing import TYPE_CHECKING

import pytest

from tests.serve.browsing import PATIENCE, Site, visit

pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")

from playwright.sync_api import expect

if TYPE_CHECKING:
    from playwright.sync_api import Page


def ask(site: Site, said: str) -> None:
    messages = [{"role": "user", "content": said}]
    body = json.dumps({"messages": messages, "max_tokens": 200}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{site.url}/v1/chat/completions", body, headers)
    urllib.request.urlopen(request, timeout=60).read()


def test_the_dashboard_shows_what_the_server_does(page: "Page", site: Site):
    visit(page, f"{site.url}/page/dashboard")
    tiles = page.locator(".tile")
    expect(tiles).to_have_count(8, timeout=PATIENCE)
    expect(tiles.filter(has_text="Slots")).to_contain_text("0 of 4")
    expect(page.locator("#slots .slot")).to_have_count(4)
    expect(page.locator("#clients-none")).to_be_visible()
    with site.holding("wait", "ing") as go_on:
        asking = threading.Thread(target=ask, args=(site, "hold"))
        asking.start()
        held = page.locator(".slot[data-held]")
        expect(held).to_have_count(1)
        expect(held).to_contain_text("of 200")
        row = page.locator("#clients tr")
        expect(row).to_have_count(1)
        expect(row).to_contain_text("client ")
        expect(row).not_to_contain_text("127.0.0.1")
        assert "hold" not in page.locator("main").inner_text()
        go_on()
        asking.join()
    expect(held).to_have_count(0)
    expect(page.locator(".plot-line").first).to_be_attached()
    expect(page.locator("#state")).to_have_text("Ready.")


def test_the_dashboard_keeps_its_history_and_obeys_the_keyboard(page: "Page", site: Site):
    visit(page, f"{site.url}/page/dashboard")
    expect(page.locator(".tile")).to_have_count(8)
    page.keyboard.press("3")
    expect(page.locator("#range")).to_have_value("3600")
    page.keyboard.press("p")
    expect(page.locator("#pause")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("p")
    expect(page.locator("#pause")).to_have_attribute("aria-pressed", "false")
    expect(page.locator(".plot-line").first).to_have_attribute("d", re.compile("^M"))
    stored = "JSON.parse(localStorage['jaxllama.dashboard'])"
    assert page.evaluate(stored)[0].keys() >= {"time", "written", "first0.5", "between0.99"}
    page.evaluate(
        """() => {
          const old = {time: Date.now() / 1000 - 7200, written: 1};
          const kept = {time: Date.now() / 1000 - 60, written: 77};
          localStorage['jaxllama.dashboard'] = JSON.stringify([old, kept, "<b>", null]);
        }"""
    )
    page.goto("about:blank")
    visit(page, f"{site.url}/page/dashboard")
    plot = page.locator(".plot", has_text="Tokens per second").locator("svg")
    expect(plot).to_have_attribute("aria-label", "Tokens per second: written 77, read none")
