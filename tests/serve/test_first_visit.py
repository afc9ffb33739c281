"""A first visit of a page transfers under 250 KB, uncompressed, with all that the page asks for."""

from collections.abc import Iterator

import pytest

from jaxllama.serve.page import PAGES
from tests.serve.browsing import Site, visit

pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")

from playwright.sync_api import Browser, Page, Request, expect

MOST = 250_000  # bytes


@pytest.fixture
def newcomer(browser: Browser) -> Iterator[Page]:
    """A page in a browser that knows nothing yet."""
    context = browser.new_context()
    yield context.new_page()
    context.close()


def transferred(page: Page, url: str) -> dict[str, int]:
    """Open a page; return the bytes of each body that came, by address and query."""
    found: dict[str, int] = {}

    def count(request: Request) -> None:
        response = request.response()
        assert response is not None
        assert "content-encoding" not in response.headers
        found[request.url.removeprefix(url)] = request.sizes()["responseBodySize"]

    page.on("requestfinished", count)
    visit(page, url)
    page.wait_for_timeout(300)  # what a page asks for after it can be used
    return found


@pytest.mark.parametrize("name", [entry.name for entry in PAGES])
def test_a_first_visit_transfers_under_250_kilobytes(newcomer: Page, site: Site, name: str):
    found = transferred(newcomer, f"{site.url}/page/{name}")
    assert "/page/style.css" in str(found)
    assert sum(found.values()) < MOST, found


def test_the_page_of_the_api_reads_the_description_in_parts(newcomer: Page, site: Site):
    whole = len(newcomer.request.get(f"{site.url}/openapi.json").body())
    found = transferred(newcomer, f"{site.url}/docs")
    expect(newcomer.locator("#call h2")).to_have_text("POST /v1/chat/completions")
    parts = [size for path, size in found.items() if "openapi.json" in path]
    assert len(parts) == 2
    assert sum(parts) < whole / 5
    with newcomer.expect_request("**/openapi.json?operation=tokenize"):
        newcomer.locator("#calls").get_by_role("button", name="POST /tokenize", exact=True).click()
    expect(newcomer.locator("#call h2")).to_have_text("POST /tokenize")
