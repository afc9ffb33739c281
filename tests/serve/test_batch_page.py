"""The batch page in a real browser, on the scripted engine."""

import json
from pathlib import Path

import pytest

from tests.serve.browsing import HOSTILE, Site, tab_to, visit

pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")

from playwright.sync_api import Page, expect

NAME = "<img src=x onerror='hacked = 1'>.csv"
VALUES = 'text,"<b>"\nhostile,1\nfirst,2\nlong,3\n'


@pytest.fixture
def batch(page: Page, site: Site) -> Page:
    """The batch page."""
    visit(page, f"{site.url}/page/batch")
    return page


def compose(page: Page, template: str, values: str = "", count: int = 1) -> None:
    """Fill in the form."""
    page.get_by_label("Message of the user").fill(template)
    page.get_by_label("Values", exact=True).fill(values)
    page.locator("#count").fill(str(count))


def begin(page: Page) -> None:
    page.get_by_role("button", name="Start").click()
    expect(page.locator("#run")).to_be_visible()


def completed(page: Page, status: str = "Completed") -> None:
    """Wait until the batch is over and its answers are shown."""
    expect(page.locator("#figures b")).to_have_text(status)
    page.evaluate("new Promise(requestAnimationFrame)")


def texts(page: Page) -> list[str]:
    """The texts in the table, in the order of its rows."""
    return page.evaluate(
        """() => {
          const titles = [...document.querySelectorAll("[role=columnheader]")];
          const place = titles.findIndex((title) => title.innerText.startsWith("Text"));
          return [...document.querySelectorAll(".table-row:not([hidden])")]
            .sort((a, b) => a.ariaRowIndex - b.ariaRowIndex)
            .map((row) => row.children[place].textContent);
        }"""
    )


def test_rows_of_a_file_become_prompts_and_answers(batch: Page, tmp_path: Path):
    page = batch
    page.get_by_label("Message of the user").fill("")
    (tmp_path / NAME).write_text(VALUES)
    page.locator("#drop input").set_input_files(tmp_path / NAME)
    expect(page.locator("#values-help")).to_have_text("3 rows with text, <b>.")
    page.get_by_role("button", name="{text}").click()
    expect(page.locator("#preview")).to_have_text("Userhostile")
    page.get_by_role("button", name="Prompt after").click()
    expect(page.locator("#preview")).to_have_text("Userfirst")
    page.locator("#count").fill("2")
    expect(page.get_by_role("button", name="Start")).to_have_text("Start 6 answers")
    begin(page)
    completed(page)
    expect(page.locator("#figures")).to_contain_text("6 of 6 answers")
    assert sum(each.startswith("<script>hacked = 1</script>") for each in texts(page)) == 2
    assert page.locator("main :is(script, img, iframe)").count() == 0
    assert page.evaluate("window.hacked") is None

    page.get_by_label("Find in prompts").fill("FIRST")
    expect(page.locator("#shown")).to_have_text("2 of 6 answers")
    page.get_by_label("Find in prompts").fill("")
    page.get_by_label("Hide equal answers").check()
    expect(page.locator("#shown")).to_have_text("4 of 6 answers")
    page.get_by_label("Hide equal answers").uncheck()
    page.get_by_role("columnheader", name="Tokens").get_by_role("button").click()
    page.evaluate("new Promise(requestAnimationFrame)")
    assert texts(page)[0].startswith("Answer")


@pytest.mark.parametrize("mode", ["Chat", "Completion"])
def test_an_answer_shows_its_tokens_of_the_same_seed(batch: Page, site: Site, mode: str):
    page = batch
    page.get_by_label(mode).check()
    field = "Message of the user" if mode == "Chat" else "Prompt"
    page.get_by_role("textbox", name=field, exact=True).fill("long")
    page.locator("#count").fill("3")
    begin(page)
    completed(page)
    page.locator(".table-row").nth(1).click()
    expect(page.locator("#detail-body")).to_contain_text("word word")
    expect(page.locator("#tokens .token").first).to_have_text("w")
    sent = site.requests[-1]
    assert (sent["prompt"] == "long") if mode == "Completion" else sent["messages"]
    assert sent["logprobs"] and isinstance(sent["seed"], int)
    page.locator("#tokens .token").first.hover()
    expect(page.locator("#token-card")).to_contain_text("50.0 %")
    title = page.locator("#detail-title").inner_text()  # answers are in the order of arrival
    page.get_by_role("button", name="Answer after").click()
    expect(page.locator("#detail-title")).not_to_have_text(title)
    page.keyboard.press("Escape")
    expect(page.locator("#detail")).to_be_hidden()
    expect(page.get_by_role("grid")).to_be_focused()


def test_answers_are_downloaded_in_three_forms(batch: Page, tmp_path: Path):
    page = batch
    compose(page, "{text}", 'id,text\n"a ""1""",hostile\nb,long\n')
    begin(page)
    completed(page)
    found = {}
    for kind in ("JSONL", "JSON", "CSV"):
        with page.expect_download() as kept:
            page.get_by_role("button", name=kind, exact=True).click()
        kept.value.save_as(tmp_path / kind)
        found[kind] = (tmp_path / kind).read_text()
    rows = json.loads(found["JSON"])
    assert [json.loads(line) for line in found["JSONL"].splitlines()] == rows
    first = next(row for row in rows if row["index"] == 0)
    assert first["id"] == 'a "1"'
    assert first["messages"] == [{"role": "user", "content": "hostile"}]
    assert first["text"] == HOSTILE
    assert first["finish_reason"] == "stop"
    assert found["CSV"].startswith("index,id,answer,prompt,text,finish_reason,tokens,error\n")
    assert '"a ""1""",0,hostile,"<script>' in found["CSV"]


def test_a_batch_goes_on_while_the_page_is_closed(batch: Page, site: Site):
    page = batch
    with site.holding("Once upon a", " time.") as release:
        compose(page, "{text}", "text\nfirst\nhold\n")
        begin(page)
        expect(page.locator("#figures b")).to_have_text("Running")
        page.reload()
        page.wait_for_selector("html[data-ready]", state="attached")
        expect(page.locator("#run")).to_be_visible()
        expect(page.get_by_role("button", name="Cancel")).to_be_visible()
        release()
        completed(page)
    assert "Once upon a time." in texts(page)
    assert len(texts(page)) == 2
    row = page.locator("#batches button").first
    expect(row).to_have_attribute("aria-current", "true")
    page.get_by_role("button", name="Delete").click()
    expect(page.locator("#compose")).to_be_visible()
    expect(page.locator(".notice")).to_contain_text("Deleted")
    page.reload()
    page.wait_for_selector("html[data-ready]", state="attached")
    expect(page.locator("#compose")).to_be_visible()


def test_a_cancelled_batch_keeps_its_answers(batch: Page, site: Site):
    page = batch
    with site.holding("Once upon a", " time.") as release:
        compose(page, "{text}", "text\nfirst\n" + "hold\n" * 20)
        begin(page)
        with page.expect_response("**/cancel"):
            page.get_by_role("button", name="Cancel").click()
        release()
        completed(page, "Cancelled")
    assert len(texts(page)) < 21
    page.get_by_role("button", name="Use again").click()
    assert page.get_by_label("Message of the user").input_value() == "{text}"


@pytest.mark.parametrize(
    ("values", "wrong"),
    [
        ("text\n1,2\n", "line 2: has 2 cells; expected 1, one per column."),
        ('{"text": 1}\n{"text"\n', "line 2: is not JSON"),
        ("other\n1\n", "Line 2: the template has {text}; expected one of {other}."),
    ],
)
def test_values_that_do_not_fit_are_explained_and_nothing_is_sent(
    batch: Page, site: Site, values: str, wrong: str
):
    compose(batch, "{text}", values)
    expect(batch.locator("#compose")).to_contain_text(wrong)
    expect(batch.get_by_role("button", name="Start")).to_be_disabled()
    compose(batch, "{text}", "text\n1\n", 10_001)
    expect(batch.locator("#count-wrong")).to_have_text("Expected a whole number from 1 to 10000.")
    compose(batch, "{text}", "text\n1\n2\n", 9_000)
    expect(batch.locator("#start-problem")).to_contain_text("18000 answers; at most 10000")
    assert site.requests == []


def test_a_wrong_setting_is_shown_and_a_request_that_fails_has_its_reason(batch: Page):
    page = batch
    page.get_by_role("button", name="Settings", exact=True).click()
    page.get_by_label("Temperature", exact=True).fill("1000")
    compose(page, "first")
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_label("Temperature", exact=True)).to_be_focused()
    page.get_by_role("button", name="Reset Temperature").click()
    page.get_by_role("searchbox", name="Find a setting").fill("logit bias")
    page.get_by_label("Logit bias", exact=True).fill("999999 = 1")
    begin(page)
    completed(page)
    expect(page.locator("#figures")).to_contain_text("1 failed")
    assert "999999" in texts(page)[0]


def test_the_keyboard_is_enough(batch: Page):
    page = batch
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    tab_to(page, "Message of the user")
    page.keyboard.type("first")
    tab_to(page, "Answers to the prompt")
    page.keyboard.press("Control+a")
    page.keyboard.type("3")
    page.keyboard.press("Control+Enter")
    completed(page)
    tab_to(page, "Answers")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator("#detail-title")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("grid")).to_be_focused()
    tab_to(page, "New batch", back=True)
    page.keyboard.press("Enter")
    expect(page.get_by_label("Message of the user")).to_be_focused()
