"""The page that classifies, in a real browser, on the scripted engine."""

import csv
import io
import json
from pathlib import Path

import pytest

from tests.serve.browsing import Site, tab_to, visit

pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")

from playwright.sync_api import Page, expect

HOSTILE = "<img src=x onerror='hacked = 1'>"


@pytest.fixture
def classify(page: Page, site: Site) -> Page:
    """The page that classifies."""
    visit(page, f"{site.url}/page/classify")
    return page


def ask(page: Page, question: str, choices: str, number: int = 0) -> None:
    """Fill in one question."""
    page.get_by_placeholder("Did the guest like it?").nth(number).fill(question)
    page.get_by_placeholder("yes, no").nth(number).fill(choices)


def finished(page: Page) -> None:
    expect(page.locator("#figures b")).to_have_text("Done")
    page.evaluate("new Promise(requestAnimationFrame)")


def test_one_text_gets_a_probability_for_each_choice_of_each_question(classify: Page, site: Site):
    page = classify
    page.get_by_label("Text", exact=True).fill(HOSTILE)
    ask(page, f"Good? {HOSTILE}", "yes, no")
    page.get_by_role("button", name="Add a question").click()
    ask(page, "What?", '["a, b", "<b>c</b>", "d"]', 1)
    page.get_by_role("button", name="Classify").click()
    cards = page.locator("#one .card")
    expect(cards).to_have_count(2)
    assert cards.nth(0).locator("h3").inner_text() == f"Good? {HOSTILE}"
    assert set(cards.nth(1).locator(".bar-name").all_inner_texts()) == {"a, b", "<b>c</b>", "d"}
    shares = [
        float(each.split()[0]) for each in cards.nth(0).locator(".bar-value").all_inner_texts()
    ]
    assert sum(shares) == pytest.approx(100, abs=0.2)
    assert shares == sorted(shares, reverse=True)
    assert [sent["labels"] for sent in site.requests] == [
        [" yes", " no"],
        [" a, b", " <b>c</b>", " d"],
    ]
    assert site.requests[0]["questions"] == [f"\nGood? {HOSTILE}\nAnswer:"]
    assert site.requests[0]["texts"] == [HOSTILE]
    assert page.locator("main img").count() == 0
    assert page.evaluate("window.hacked") is None


def test_a_file_is_classified_compared_and_exported(classify: Page, site: Site, tmp_path: Path):
    page = classify
    rows = [[f'{n}, "x" {HOSTILE}', ("yes", "no", "")[n % 3]] for n in range(20)]
    text = io.StringIO()
    csv.writer(text).writerows([["text", "gold"], *rows])
    (tmp_path / f"{HOSTILE}.csv").write_text(text.getvalue())
    page.locator("#drop input").set_input_files(tmp_path / f"{HOSTILE}.csv")
    expect(page.locator("#rows-help")).to_have_text(f"“{HOSTILE}.csv”: 20 texts.")
    ask(page, "Good?", "yes,no")
    page.get_by_label("Column with the right answer").select_option("gold")
    page.get_by_role("button", name="Classify 20 texts").click()
    finished(page)
    assert page.get_by_role("grid").get_attribute("aria-rowcount") == "21"
    expect(page.locator("#scores")).to_contain_text("of 14)")
    cells = page.locator(".confusion td").all_inner_texts()
    assert sum(map(int, cells)) == 14
    assert len(site.requests) == 3
    assert [text for sent in site.requests for text in sent["texts"]] == [row[0] for row in rows]

    with page.expect_download() as kept:
        page.get_by_role("button", name="CSV").click()
    kept.value.save_as(tmp_path / "out.csv")
    found = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text(), newline="")))
    assert list(found[0]) == [
        *("text", "gold", "label", "probability"),
        *("probability:yes", "probability:no"),
    ]
    assert [[row["text"], row["gold"]] for row in found] == rows
    assert float(found[0]["probability:yes"]) + float(found[0]["probability:no"]) == pytest.approx(
        1
    )
    with page.expect_download() as kept:
        page.get_by_role("button", name="JSONL").click()
    kept.value.save_as(tmp_path / "out.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["label"] for line in lines] == [row["label"] for row in found]

    page.get_by_label("Least probability").fill("1")
    expect(page.locator("#scores")).to_contain_text("of 20 are at least 100.0 % likely")
    page.locator(".table-row").first.click()
    expect(page.locator("#detail-body .preview")).to_have_text(rows[0][0])
    assert page.locator("main img").count() == 0
    assert page.evaluate("window.hacked") is None


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        ("text\n1,2\n", "line 2: has 2 cells"),
        ("text,gold\na,maybe\n", "line 2: gold is “maybe”; expected one of yes, no."),
        ("text,label\na,b\n", "has a column “label”, which the result would replace"),
        ("text\n", "has no texts"),
    ],
)
def test_a_file_that_does_not_fit_is_explained(
    classify: Page, site: Site, tmp_path: Path, content: str, wrong: str
):
    page = classify
    ask(page, "Good?", "yes,no")
    (tmp_path / "rows.csv").write_text(content)
    page.locator("#drop input").set_input_files(tmp_path / "rows.csv")
    gold = page.get_by_label("Column with the right answer")
    if "gold" in content:
        gold.select_option("gold")
    expect(page.locator("#ask")).to_contain_text(wrong)
    expect(page.get_by_role("button", name="Classify")).to_be_disabled()
    assert site.requests == []


def test_choices_that_are_none_are_explained(classify: Page):
    page = classify
    page.get_by_label("Text", exact=True).fill("text")
    for choices, wrong in [
        ("yes,yes", "“yes” is there twice."),
        ("yes,", "A choice is empty."),
        ("[1]", "The list holds more than texts."),
        ("[", "This is no JSON list."),
    ]:
        ask(page, "Good?", choices)
        expect(page.locator(".card .wrong")).to_have_text(wrong)
        expect(page.get_by_role("button", name="Classify")).to_be_disabled()


def test_the_keyboard_is_enough(classify: Page):
    page = classify
    tab_to(page, "Text")
    page.keyboard.type("The soup was cold.")
    tab_to(page, "Choices, or a JSON list of them")
    page.keyboard.type("yes,no")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#one .card")).to_have_count(1)
    tab_to(page, "Add a question")
    page.keyboard.press("Enter")
    expect(page.get_by_placeholder("Did the guest like it?").nth(1)).to_be_focused()
    tab_to(page, "Remove this question", back=True)
    page.keyboard.press("Enter")
    expect(page.locator("#questions .card")).to_have_count(1)
