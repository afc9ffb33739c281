"""axe-core finds no serious fault of accessibility on any page, in any colours or width."""

from collections.abc import Callable
from importlib.resources import files

import pytest

from jaxllama.serve.page import PAGES
from tests.serve.browsing import Site, act, done, say, visit

pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
pytest.importorskip("axe_playwright_python", reason="needs axe-playwright-python")

from playwright.sync_api import Page, expect

AXE = (files("axe_playwright_python") / "axe.min.js").read_text()
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
RUN = """async (rules) => {
  const { violations } = await axe.run(document, { runOnly: { type: "tag", values: rules } });
  return violations
    .filter(({ impact }) => impact === "serious" || impact === "critical")
    .map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html.slice(0, 200)).join(" | ")}`);
}"""


def with_chat(page: Page) -> None:
    """Thoughts, a tool call with its form, versions, tokens, and a card of alternatives."""
    say(page, "markdown")
    page.locator("#open-settings").click()
    page.get_by_label("Prompt format").select_option("template")
    page.locator("#tools-group summary").click()
    page.locator("#tools").fill('[{"type": "function", "function": {"name": "look"}}]')
    page.locator("#open-settings").click()
    act(page, 1, "Regenerate")
    expect(page.locator(".versions").nth(1)).to_be_visible()
    done(page)
    say(page, "call")
    page.locator(".thoughts summary").last.click()
    expect(page.get_by_label("What look returns")).to_be_visible()
    assert page.evaluate(RUN, RULES) == []
    page.get_by_role("button", name="Show tokens").click()
    page.locator(".message").nth(1).locator(".token").first.click()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert page.evaluate(RUN, RULES) == []
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Show tokens").click()


def with_batch(page: Page) -> None:
    page.get_by_label("Message of the user").fill("{text}")
    page.get_by_label("Values", exact=True).fill("text\nlong\nfirst\n")
    page.locator("#count").fill("1")
    page.get_by_role("button", name="Start").click()
    expect(page.locator("#figures b")).to_have_text("Completed")
    page.locator(".table-row").first.click()
    expect(page.locator("#tokens .token").first).to_be_visible()


def with_classify(page: Page) -> None:
    page.get_by_placeholder("Did the guest like it?").fill("Good?")
    page.get_by_placeholder("yes, no").fill("yes,no")
    rows = b"text,gold\none,yes\ntwo,no\n"
    page.locator("#drop input").set_input_files(
        {"name": "rows.csv", "mimeType": "text/csv", "buffer": rows}
    )
    page.get_by_label("Column with the right answer").select_option("gold")
    page.get_by_role("button", name="Classify 2 texts").click()
    expect(page.locator("#figures b")).to_have_text("Done")


def with_fields(page: Page) -> None:
    page.get_by_label("Schema, or a sample object").fill('{"a": true, "b": {"c": 1}}')
    page.get_by_role("button", name="Fill the fields").click()
    expect(page.locator("#start")).to_be_enabled()
    page.get_by_role("button", name="Alternatives of a").click()
    expect(page.locator(".bars button").first).to_be_visible()


USES: dict[str, Callable[[Page], None]] = {
    "chat": with_chat,
    "batch": with_batch,
    "classify": with_classify,
    "fields": with_fields,
}


@pytest.mark.parametrize("name", [entry.name for entry in PAGES])
def test_axe_finds_no_serious_fault(page: Page, site: Site, name: str):
    visit(page, f"{site.url}/page/{name}")
    page.evaluate(AXE)
    assert page.evaluate(RUN, RULES) == []
    if name in USES:
        USES[name](page)
        page.evaluate("document.querySelector('#open-settings:not([aria-expanded=true])')?.click()")
        assert page.evaluate(RUN, RULES) == []
    page.keyboard.press("Control+/")
    expect(page.get_by_role("dialog", name="Keyboard shortcuts")).to_be_visible()
    assert page.evaluate(RUN, RULES) == []
    page.keyboard.press("Escape")
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size({"width": 360, "height": 640})
    assert page.evaluate(RUN, RULES) == []


def test_axe_would_find_one(page: Page):
    page.evaluate(AXE)
    page.evaluate("document.querySelector('main').append(document.createElement('button'))")
    assert any("button-name" in each for each in page.evaluate(RUN, RULES))
