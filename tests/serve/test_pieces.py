"""The pieces that pages share, in a real browser: table, file field, plots, knobs with a search."""

import re
from pathlib import Path

import pytest

from tests.serve.browsing import Site

pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")

from playwright.sync_api import Page, expect

HOSTILE = "<img src=x onerror='hacked = 1'>"
TABLE = """async (count) => {
  const { ResultTable } = await import("/page/js/table.js");
  window.opened = [];
  const table = new ResultTable({
    label: "Numbers",
    columns: [
      {
        name: "n", title: "Place", width: "6rem", isNumber: true,
        text: (row) => String(row.n), value: (row) => row.n,
      },
      { name: "text", title: "Text", width: "minmax(12rem, 1fr)", text: (row) => row.text },
    ],
    onOpen: (row) => window.opened.push(row.n),
  });
  document.querySelector("main").replaceChildren(table.element);
  table.set(Array.from({ length: count }, (_, n) => ({ n, text: `${(n * 7919) % count} <b>` })));
  await new Promise(requestAnimationFrame);
  await new Promise(requestAnimationFrame);
  window.table = table;
}"""
SHOWN = """() => [...document.querySelectorAll(".table-row:not([hidden])")]
  .sort((a, b) => a.ariaRowIndex - b.ariaRowIndex).map((row) => Number(row.firstChild.innerText))"""


def frames(page: Page) -> None:
    """Wait until what was asked for is drawn."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def test_a_table_of_many_rows_has_elements_for_those_in_view_only(page: Page):
    page.evaluate(TABLE, 10_000)
    grid = page.get_by_role("grid", name="Numbers")
    assert grid.get_attribute("aria-rowcount") == "10001"
    assert page.locator(".table-row").count() < 60
    assert page.evaluate(SHOWN)[:3] == [0, 1, 2]
    grid.evaluate("element => { element.scrollTop = 36 * 5000 }")
    frames(page)
    shown = page.evaluate(SHOWN)
    assert 5000 in shown and shown == list(range(shown[0], shown[-1] + 1))
    assert page.locator(".table-row").count() < 60
    assert page.locator(".table-row b").count() == 0


def test_a_table_sorts_filters_and_takes_rows_in_any_state(page: Page):
    page.evaluate(TABLE, 100)
    head = page.get_by_role("columnheader", name="Place")
    head.get_by_role("button").click()
    head.get_by_role("button").click()
    expect(head).to_have_attribute("aria-sort", "descending")
    frames(page)
    assert page.evaluate(SHOWN)[:2] == [99, 98]
    page.evaluate(
        "table.append([{ n: 98.5, text: '' }, { n: 1000, text: '' }, { n: -1, text: '' }])"
    )
    frames(page)
    assert page.evaluate("table.view.map((row) => row.n)") == [1000, 99, 98.5, *range(98, -2, -1)]
    page.evaluate("table.filter((row) => row.n % 2 === 0)")
    page.evaluate("table.append([{ n: 7, text: '' }, { n: 50.0, text: 'new' }])")
    frames(page)
    assert page.evaluate(SHOWN)[:3] == [1000, 98, 96]
    assert (
        page.evaluate("table.view.filter((row) => row.n === 50).map((row) => row.text)")[1] == "new"
    )
    head.get_by_role("button").click()
    page.evaluate("table.filter(null)")
    frames(page)
    assert page.evaluate(SHOWN)[:2] == [0, 1]


def test_a_table_is_used_with_the_keyboard_alone(page: Page):
    page.evaluate(TABLE, 10_000)
    grid = page.get_by_role("grid", name="Numbers")
    grid.focus()
    active = "document.getElementById(document.activeElement.getAttribute('aria-activedescendant'))"
    for key, number in [("ArrowDown", 1), ("End", 9999), ("ArrowUp", 9998), ("Home", 0)]:
        page.keyboard.press(key)
        frames(page)
        assert page.evaluate(f"Number({active}.firstChild.innerText)") == number
        box = page.evaluate(
            f"(({{ top, bottom }}) => [top, bottom])({active}.getBoundingClientRect())"
        )
        outer = grid.bounding_box()
        assert outer["y"] <= box[0] and box[1] <= outer["y"] + outer["height"]
        page.keyboard.press("Enter")
    page.keyboard.press("PageDown")
    page.keyboard.press("Enter")
    opened = page.evaluate("opened")
    assert opened[:4] == [1, 9999, 9998, 0] and 1 < opened[4] < 40


def test_a_file_is_read_as_text_whatever_its_name(page: Page, tmp_path: Path):
    page.evaluate(
        """async () => {
          const { FileDrop } = await import("/page/js/drop.js");
          const said = document.createElement("pre");
          const drop = new FileDrop({
            label: "Choose a file", accept: ".csv,.jsonl", area: document.body, mostMib: 1,
            onText: (name, text) => said.append(`${name}: ${text}\\n`),
            onProblem: (words) => said.append(words),
          });
          document.querySelector("main").replaceChildren(drop.element, said);
        }"""
    )
    said, field = page.locator("main pre"), page.locator("main input[type=file]")
    hostile = tmp_path / f"{HOSTILE}.csv"
    hostile.write_text("\ufeffa,b\n1,2\n", encoding="utf-8")
    field.set_input_files(hostile)
    expect(said).to_have_text(f"{HOSTILE}.csv: a,b\n1,2\n")
    for name, content, words in [
        ("x.exe", b"", "expected a file that ends in .csv,.jsonl"),
        ("x.csv", b"\xff\xfe", "is not UTF-8 text"),
        ("x.CSV", b" " * (2 << 20), "larger than 1 MiB"),
    ]:
        (tmp_path / name).write_bytes(content)
        field.set_input_files(tmp_path / name)
        expect(said).to_contain_text(words)
    page.evaluate(
        """() => {
          const transfer = new DataTransfer();
          transfer.items.add(new File(["dropped"], "d.jsonl"));
          for (const type of ["dragover", "drop"]) {
            const given = { dataTransfer: transfer, cancelable: true };
            document.body.dispatchEvent(new DragEvent(type, given));
          }
        }"""
    )
    expect(said).to_contain_text("d.jsonl: dropped")
    assert page.evaluate("window.hacked") is None


def test_plots_show_their_values_and_keep_names_as_text(page: Page):
    page.evaluate(
        """async (hostile) => {
          const { LinePlot, ColumnPlot, barList } = await import("/page/js/plots.js");
          const lines = new LinePlot({ label: "Speed" });
          lines.show([
            { name: hostile, points: [[0, 1], [1, NaN], [2, 3], [3, 12345]] },
            { name: "empty", points: [] },
          ]);
          const columns = new ColumnPlot({ label: "Shares" });
          const pairs = [{ name: hostile, values: [0.5, null] }, { name: "b", values: [0.25, 1] }];
          columns.show(pairs, ["x", "y"]);
          const bars = barList([{ name: hostile, share: 2, text: "200 %" }]);
          document.querySelector("main").replaceChildren(lines.element, columns.element, bars);
        }""",
        HOSTILE,
    )
    line = page.get_by_role("img", name=re.compile("^Speed"))
    expect(line).to_have_attribute("aria-label", f"Speed: {HOSTILE} 12.3k, empty none")
    path = line.locator("path").first.get_attribute("d")
    assert path.count("M") == 2 and path.count("L") == 1
    assert page.get_by_role("img", name="Shares").locator("rect").count() == 4
    assert page.locator("main img").count() == 0
    assert page.locator(".bars").inner_text().split("\n") == [HOSTILE, "200 %"]
    assert page.evaluate("window.hacked") is None


def test_round_ticks_cover_the_range(page: Page):
    ticks = "async (given) => (await import('/page/js/plots.js')).ticks(...given)"
    assert page.evaluate(ticks, [0, 1, 5]) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert page.evaluate(ticks, [-3, 7, 4]) == [0, 5]
    assert page.evaluate(ticks, [1234, 1238, 4]) == [1234, 1235, 1236, 1237, 1238]
    assert page.evaluate(ticks, [2, 2, 4]) == [2]


def test_settings_are_found_by_name_help_and_sampler(page: Page, site: Site):
    page.get_by_role("button", name="Settings", exact=True).click()
    search = page.get_by_role("searchbox", name="Find a setting")
    search.fill("top nucleus")
    expect(page.get_by_text("No setting is like this.")).to_be_visible()
    search.fill("top p")
    expect(page.get_by_label("Top p", exact=True)).to_be_visible()
    expect(page.get_by_label("Temperature", exact=True)).to_be_hidden()
    page.get_by_label("Top p", exact=True).fill("0.5")
    search.press("Escape")
    expect(page.get_by_label("Temperature", exact=True)).to_be_visible()
    expect(page.get_by_label("Top p", exact=True)).to_be_hidden()
    assert page.locator("#settings").get_attribute("data-open") is not None
    assert site.requests == []
