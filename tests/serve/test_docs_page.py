"""The page of the API in a real browser: every call, tried in place and as text for programs."""

import json
import shlex

import pytest

from tests.serve.browsing import Site, visit

pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")

from playwright.sync_api import Page, expect


@pytest.fixture
def docs(page: Page, site: Site) -> Page:
    """The page of the API."""
    visit(page, f"{site.url}/docs")
    expect(page.locator("#call h2")).to_have_text("POST /v1/chat/completions")
    return page


def choose(page: Page, name: str) -> None:
    page.locator("#calls").get_by_role("button", name=name, exact=True).click()


def test_every_call_is_listed_found_and_described(docs: Page, site: Site):
    paths = docs.request.get(f"{site.url}/openapi.json").json()["paths"]
    calls = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    buttons = docs.locator("#calls button")
    assert set(buttons.all_inner_texts()) == calls
    docs.get_by_label("Find a call").fill("tokenize conversation")
    expect(docs.locator("#calls button:visible")).to_have_text(
        ["POST /tokenize", "POST /chat/tokenize"]
    )
    choose(docs, "POST /tokenize")
    expect(docs.locator("#call h2")).to_be_focused()
    fields = docs.locator(".fields tbody tr")
    assert "text" in fields.locator("code").all_inner_texts()


def test_a_call_is_tried_and_the_reply_is_shown(docs: Page, site: Site):
    body = docs.get_by_label("Body")
    value = json.loads(body.input_value())
    assert value["messages"][0]["role"] == "user"
    docs.get_by_role("button", name="Send").click()
    expect(docs.locator(".status")).to_contain_text("200 OK")
    reply = json.loads(docs.locator(".reply").inner_text())
    assert reply["choices"][0]["message"]["content"].startswith("Answer")
    body.fill('{"messages": [{"role": "user", "content": "hostile"}], "stream": true}')
    docs.get_by_role("button", name="Send").click()
    expect(docs.locator(".reply")).to_contain_text("[DONE]")
    assert docs.locator(".reply :is(img, script)").count() == 0
    body.fill('{"messages": [], "temperature": -1}')
    docs.get_by_role("button", name="Send").click()
    expect(docs.locator(".status")).to_contain_text("400")
    body.fill("{")
    expect(docs.get_by_role("alert").first).to_contain_text("not JSON")
    count = len(site.requests)
    docs.get_by_role("button", name="Send").click()
    assert len(site.requests) == count


def test_a_path_gets_its_values(docs: Page):
    choose(docs, "GET /v1/models/{model}")
    docs.get_by_role("button", name="Send").click()
    expect(docs.get_by_role("alert").first).to_contain_text("model")
    expect(docs.get_by_label("model", exact=True)).to_be_focused()
    docs.keyboard.type("scripted")
    docs.keyboard.press("Enter")
    expect(docs.locator(".reply")).to_contain_text('"id": "scripted"')


def test_the_same_call_is_there_for_curl_and_python(docs: Page, site: Site):
    hostile = {"prompt": 'it\'s `a` $(b)\n"c"', "max_tokens": 5, "echo": True, "suffix": None}
    choose(docs, "POST /v1/completions")
    docs.get_by_label("Body").fill(json.dumps(hostile))
    curl, python = docs.locator("#call .code pre:visible").all_inner_texts()[-2:]
    words = shlex.split(curl.replace("\\\n", " "))
    assert words[:2] == ["curl", f"{site.url}/v1/completions"]
    assert json.loads(words[words.index("-d") + 1]) == hostile
    sent = {}

    class Requests:
        @staticmethod
        def post(url: str, **more: object) -> object:
            sent.update(url=url, **more)
            return type("", (), {"text": "", "raise_for_status": lambda _: None})()

    exec(python.replace("import requests", ""), {"requests": Requests, "print": str})
    assert sent == {"url": f"{site.url}/v1/completions", "json": hostile, "timeout": 600}


@pytest.mark.parametrize("width", [360, 1280])
def test_the_docs_fit_the_width(docs: Page, width: int):
    docs.set_viewport_size({"width": width, "height": 640})
    assert docs.evaluate("document.documentElement.scrollWidth") == width
    assert docs.evaluate("document.getElementById('scroller').scrollWidth") <= width
