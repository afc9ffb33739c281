"""Frames per second of the pages, by the browser's own trace: `python -m tests.serve.frames`.

Six settings of the sampler bench stream at once, in the same document as a table of 10,000 rows
that is scrolled all the time. The engine is scripted and slow, so that the machine's cores are free
for the browser, as they are where the server runs on another machine. Prints one line of JSON:
frames drawn per second, the share of frames that came late, tasks of the page's main thread.
"""

import json
import os
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import click

from tests.serve import browsing

STREAMS = 6
TOKENS_PER_SECOND = 30  # of each stream
ROWS = 10_000
SECONDS = 10.0
FRAME_MS = 1000 / 60
CATEGORIES = [
    "devtools.timeline",
    "disabled-by-default-devtools.timeline",
    "disabled-by-default-devtools.timeline.frame",
]
TABLE = """async (rows) => {
  const { ResultTable } = await import("/page/js/table.js");
  const columns = [
    { name: "index", title: "Index", width: "5rem", text: ({ index }) => String(index) },
    { name: "text", title: "Text", width: "minmax(16rem, 3fr)", text: ({ text }) => text },
    { name: "tokens", title: "Tokens", width: "6rem", text: ({ tokens }) => String(tokens) },
  ];
  const table = new ResultTable({ label: "Rows", columns });
  const { element } = table;
  element.style.cssText = "height: 18rem; flex: none";
  document.querySelector("main").append(element);
  const rowOf = (_, index) => ({ index, text: `Answer ${index} `.repeat(20), tokens: index % 97 });
  table.set(Array.from({ length: rows }, rowOf));
  let by = 72;
  const scroll = () => {
    element.scrollTop += by;
    const end = element.scrollHeight - element.clientHeight;
    if (element.scrollTop <= 0 || element.scrollTop >= end) by = -by;
    requestAnimationFrame(scroll);
  };
  scroll();
}"""


@dataclass
class Slowly(Sequence[int]):
    """A long answer that comes at a steady pace, whoever asks for its tokens."""

    text: bytes = b"word after word " * 64

    def __len__(self) -> int:
        return len(self.text)

    def __getitem__(self, index: Any) -> Any:
        time.sleep(1 / TOKENS_PER_SECOND / STREAMS)  # one thread writes all streams
        return self.text[index]


def main() -> None:
    """Measure, and print the record."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - an extra of development

    for site in sites():
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=browsing.CHROMIUM, args=browsing.QUIET
            )
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            browsing.visit(page, f"{site.url}/page/bench")
            for _ in range(STREAMS - page.locator("#columns > *").count()):
                page.locator("#add").click()
            page.locator("#tokens").fill("64")
            page.evaluate(TABLE, ROWS)
            idle = measured(browser, page, streams=False)
            busy = measured(browser, page, streams=True)
            version = browser.version
            browser.close()
        click.echo(json.dumps({
            "bench": "frames", "streams": STREAMS, "tokens_per_second": TOKENS_PER_SECOND,
            "rows": ROWS, "seconds": SECONDS, "table_alone": idle, "with_streams": busy,
            "chromium": version, "machine": platform.machine(), "cores": os.cpu_count(),
        }))  # fmt: skip


def sites() -> Iterator[browsing.Site]:
    """A server whose engine writes slowly."""
    for site in browsing.serving(slots=STREAMS):
        site.script.otherwise = Slowly
        yield site


def count_tokens(page: Any) -> int:
    """The tokens that the answers on the page have now."""
    return int(page.locator("#columns .token").count())


def measured(browser: Any, page: Any, *, streams: bool) -> dict[str, float]:
    """Trace the page for some seconds; `streams`: with answers on their way all the time."""
    tokens = 0
    browser.start_tracing(page=page, categories=CATEGORIES)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if streams and page.locator("#run[data-running]").count() == 0:
            tokens += count_tokens(page)
            page.locator("#run").click()
        page.wait_for_timeout(100)
    events = json.loads(browser.stop_tracing())["traceEvents"]
    return figures(events) | {"tokens": tokens + count_tokens(page)}


def figures(events: list[dict[str, Any]]) -> dict[str, float]:
    """The figures of a trace."""
    drawn = sorted(each["ts"] / 1000 for each in events if each["name"] == "DrawFrame")
    gaps = [later - before for before, later in pairwise(drawn)]
    main_threads = {
        (each["pid"], each["tid"])
        for each in events
        if each["name"] == "thread_name" and each["args"].get("name") == "CrRendererMain"
    }
    tasks = [
        each
        for each in events
        if each["name"] == "RunTask" and (each["pid"], each["tid"]) in main_threads
    ]
    elapsed = [each.get("dur", 0) / 1000 for each in tasks]
    worked = [each.get("tdur", 0) / 1000 for each in tasks]  # without waiting for a processor
    span = (drawn[-1] - drawn[0]) / 1000
    return {
        "frames_per_second": round(len(gaps) / span, 1),
        "frame_p50_ms": round(sorted(gaps)[len(gaps) // 2], 1),
        "frame_p99_ms": round(sorted(gaps)[int(len(gaps) * 0.99)], 1),
        "late_share": round(sum(gap > 1.5 * FRAME_MS for gap in gaps) / len(gaps), 4),
        "main_thread_share": round(sum(worked) / 1000 / span, 3),
        "longest_task_ms": round(max(elapsed), 1),
        "longest_work_ms": round(max(worked), 1),
        "works_over_a_frame": sum(each > FRAME_MS for each in worked),
    }


if __name__ == "__main__":
    main()
