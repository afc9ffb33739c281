"""The guard: without a key nothing opens but what says so; strange hosts and origins stay out."""

import hmac
import logging
import re
from types import SimpleNamespace

import pytest
from multidict import CIMultiDict

from jaxllama.errors import HttpError
from jaxllama.serve.app import create_app
from jaxllama.serve.guard import Guard, bearer_key, host_of, open_to_all
from jaxllama.serve.settings import Settings
from tests.serve.clients import DIALECTS
from tests.serve.conftest import running, scenario

OPEN = {"/", "/page/{path}", "/health", "/ready", "/docs", "/openapi.json"}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def test_every_route_but_the_listed_ones_needs_a_key():
    async def body():
        async with running(api_keys=("secret",), dialects=DIALECTS) as live:
            app = create_app(live.server.models, live.server.settings, DIALECTS)
            paths = {resource.canonical for resource in app.router.resources()}
            assert len(paths) > len(OPEN)
            for route in sorted({*paths, "/nothing", "/v1", "/admin"} - OPEN):
                path = re.sub(r"{\w+}", "x", route)
                for variant in (path, f"{path}/", f"/{path}", f"{path}?api_key=secret"):
                    for method in METHODS:
                        assert await live.status(variant, method) == 401, (method, variant)

    scenario(body)


def test_the_listed_routes_need_none():
    async def body():
        async with running(api_keys=("secret",)) as live:
            assert await live.status("/health") == 200
            assert await live.status("/ready") == 200
            assert await live.status("/") == 200

    scenario(body)


def test_each_of_several_keys_opens():
    async def body():
        async with running(api_keys=("one", "two", "dr\u00f6i")) as live:
            for key in ("one", "two"):
                headers = {"Authorization": f"Bearer {key}"}
                assert await live.status("/metrics", headers=headers) == 200
            for scheme in ("bearer", "BEARER"):
                assert (
                    await live.status("/metrics", headers={"Authorization": f"{scheme} one"}) == 200
                )

    scenario(body)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer on",
        "Bearer onee",
        "Bearer One",
        "Basic one",
        "one",
        "Bearer " + "x" * 8000,
        "Bearer öü",
        "Bearer one two",
        "Bearer one,two",
    ],
)
def test_anything_else_opens_nothing(value):
    guard = Guard(Settings(api_keys=("one",), host="0.0.0.0"))
    with pytest.raises(HttpError) as caught:
        request = a_request(Authorization=value)
        guard.check(request, None, bearer_key(request))
    assert caught.value.status == 401


def a_request(**headers):
    return SimpleNamespace(
        headers=CIMultiDict({key.replace("_", "-"): value for key, value in headers.items()}),
        remote="10.0.0.1",
        method="GET",
    )


def test_keys_are_compared_in_constant_time_and_all_of_them(monkeypatch):
    compared = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or real(a, b))
    guard = Guard(Settings(api_keys=("first", "second", "third"), host="0.0.0.0"))
    guard.check(a_request(), None, "first")
    assert len(compared) == 3
    assert all(len(a) == len(b) == 32 for a, b in compared)


def test_who_is_served_is_a_key_or_an_address_and_never_the_key_itself():
    guard = Guard(Settings(api_keys=("s3cret",)))
    name = guard.client(a_request(), "s3cret")
    assert name.startswith("key-")
    assert "s3cret" not in name
    assert guard.client(a_request(), "") == "at 10.0.0.1"


def test_a_handler_that_says_so_is_open():
    guard = Guard(Settings(api_keys=("one",), host="0.0.0.0"))

    @open_to_all
    async def handler(request):
        return request

    guard.check(a_request(), handler, "")


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8000",
        "localhost.",
        "localhost.:80",
        "127.0.0.1:8000",
        "[::1]",
        "[::1]:8000",
        "Models.Example",
        "localhost:",
    ],
)
def test_our_own_names_pass(host):
    Guard(Settings(allowed_hosts=("models.example",))).check(a_request(Host=host), None, "")


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "localhost@evil",
        "",
        "[::1].evil",
        "localhost:80:80",
        "127.0.0.2",
        "evil.example:8000",
        "a/?x=localhost",
    ],
)
def test_other_names_do_not_on_a_loopback_address(host):
    with pytest.raises(HttpError) as caught:
        Guard(Settings()).check(a_request(Host=host), None, "")
    assert caught.value.status == 403


def test_two_hosts_are_none():
    request = a_request()
    request.headers = CIMultiDict([("Host", "localhost"), ("Host", "localhost")])
    assert host_of(request) == ""


def test_an_address_that_the_network_sees_takes_any_name():
    Guard(Settings(host="0.0.0.0")).check(a_request(Host="models.lan"), None, "")


def test_no_origin_is_welcome_unless_named():
    async def body():
        page = {"Origin": "https://evil.example"}
        async with running(cors_origins=("https://good.example",)) as live:
            for origin in ("https://evil.example", "null", "https://good.example.evil", "*"):
                async with live.http.get(
                    f"{live.url}/health", headers={"Origin": origin}
                ) as answer:
                    assert not [name for name in answer.headers if name.startswith("Access-")]
            async with live.http.get(
                f"{live.url}/health", headers={"Origin": "https://good.example"}
            ) as answer:
                assert answer.headers["Access-Control-Allow-Origin"] == "https://good.example"
                assert "Access-Control-Allow-Credentials" not in answer.headers
                assert answer.headers["Vary"] == "Origin"
            asks = {"Access-Control-Request-Method": "POST"}
            assert await live.status("/say", "OPTIONS", headers=page | asks) == 405
            good = {"Origin": "https://good.example"} | asks
            assert await live.status("/say", "OPTIONS", headers=good) == 204

    scenario(body)


def test_a_form_of_a_web_page_cannot_ask():
    async def body():
        async with running() as live:
            headers = {"Origin": "https://evil.example", "Content-Type": "text/plain"}
            assert await live.status("/say", "POST", data='{"prompt": "x"}', headers=headers) == 415

    scenario(body)


def test_a_key_is_never_logged_nor_told(caplog):
    async def body():
        async with running(api_keys=("s3cret-key",)) as live:
            headers = {"Authorization": "Bearer s3cret-key"}
            await live.status("/say", "POST", json={}, headers=headers)
            await live.status("/say?key=s3cret-key", "POST", json={"nn": 1}, headers=headers)
            async with live.http.get(f"{live.url}/metrics", headers=headers) as response:
                assert "s3cret-key" not in await response.text()
            await live.settled()
            assert len(caplog.records) >= 2
            for record in caplog.records:
                assert "s3cret-key" not in f"{record.getMessage()} {vars(record)}"

    with caplog.at_level(logging.INFO):
        scenario(body)
