"""The page's files: served from memory, under a policy that lets nothing else in."""

import hashlib
import re
from pathlib import Path

import jaxllama.serve.page
from tests.serve.conftest import running, scenario

FOLDER = Path(jaxllama.serve.page.__file__).parent
FILES = sorted(
    path for path in FOLDER.rglob("*") if path.suffix in (".html", ".css", ".js", ".svg")
)
VENDOR = FOLDER / "vendor"
OWN = [path for path in FILES if not path.is_relative_to(VENDOR)]
SCRIPTS = [path for path in OWN if path.suffix == ".js"]
PAGE = (FOLDER / "index.html").read_text()


def test_every_file_is_served_with_its_type():
    types = {
        ".html": "text/html",
        ".css": "text/css",
        ".js": "text/javascript",
        ".svg": "image/svg+xml",
    }

    async def body():
        async with running() as live:
            for path in FILES:
                url = f"{live.url}/page/{path.relative_to(FOLDER).as_posix()}"
                async with live.http.get(url) as response:
                    assert response.status == 200, url
                    assert (
                        response.headers["Content-Type"] == f"{types[path.suffix]}; charset=utf-8"
                    )
                    assert await response.read() == path.read_bytes()

    scenario(body)


def test_the_page_is_at_the_root_whatever_the_address_asks():
    async def body():
        async with running() as live:
            for path in ("/", "/?q=hello", "/?prompt=%3Cscript%3E"):
                async with live.http.get(live.url + path) as response:
                    assert await response.text() == PAGE

    scenario(body)


def test_the_policy_lets_nothing_in_but_the_servers_own_files():
    async def body():
        async with running() as live:
            for path in ("/", "/page/js/main.js"):
                async with live.http.get(live.url + path) as response:
                    rules = dict(
                        rule.strip().split(" ", 1)
                        for rule in response.headers["Content-Security-Policy"].split(";")
                    )
                    assert rules.pop("require-trusted-types-for") == "'script'"
                    assert set(rules.values()) == {"'self'", "'none'"}
                    assert rules["default-src"] == "'none'"
                    assert rules["img-src"] == "'self'"
                    assert rules["form-action"] == rules["base-uri"] == "'none'"
                    assert rules["frame-ancestors"] == "'none'"
                    assert response.headers["X-Content-Type-Options"] == "nosniff"
                    assert response.headers["Referrer-Policy"] == "no-referrer"

    scenario(body)


def test_a_copy_that_still_holds_is_not_sent_again():
    async def body():
        async with running() as live:
            async with live.http.get(f"{live.url}/page/style.css") as response:
                tag = response.headers["ETag"]
                assert response.headers["Cache-Control"] == "no-cache"
            for known, status in ((tag, 304), ('"other"', 200), (f'"other", W/{tag}', 304)):
                headers = {"If-None-Match": known}
                assert await live.status("/page/style.css", headers=headers) == status

    scenario(body)


def test_nothing_but_the_pages_files_is_served():
    async def body():
        async with running() as live:
            for path in ("__init__.py", "none.js", "js/", "../app.py", "%2e%2e/app.py", "js/..%2f"):
                assert await live.status(f"/page/{path}") == 404, path

    scenario(body)


def test_the_page_needs_no_key():
    async def body():
        async with running(api_keys=("secret",)) as live:
            assert await live.status("/") == 200
            assert await live.status("/page/js/main.js") == 200
            assert await live.status("/say", "POST", json={}) == 401

    scenario(body)


def test_every_file_that_the_page_names_exists():
    named = re.findall(r'(?:src|href)="(/page/[^"#]+)"', PAGE)
    assert named
    assert {FOLDER / path.removeprefix("/page/") for path in named} <= set(FILES)
    for script in SCRIPTS:
        for other in re.findall(r'(?:from|import\() ?"([^"]+)"', script.read_text()):
            assert (script.parent / other).resolve() in FILES, f"{script.name}: {other}"


def test_every_file_is_used():
    sources = PAGE + "".join(path.read_text() for path in SCRIPTS)
    for path in OWN:
        assert path.name == "index.html" or re.search(rf'[/"]{path.name}"', sources), path.name


def test_every_icon_and_element_that_a_script_names_is_there():
    for script in SCRIPTS:
        text = script.read_text()
        for id_ in re.findall(r'byId\("([\w-]+)"\)', text):
            assert f'id="{id_}"' in PAGE, f"{script.name}: #{id_}"
        for name in re.findall(r'icon\("([a-z]+)"\)|(?:iconButton|button)\("([a-z]+)", ', text):
            if any(name):
                assert f'id="icon-{"".join(name)}"' in PAGE, f"{script.name}: icon {name}"


def test_nothing_is_inline_and_nothing_comes_from_elsewhere():
    assert not re.search(r"<style|<script(?![^>]* src=)|\sstyle=|\son\w+=", PAGE)
    for path in OWN:
        text = re.sub(r"http://www.w3.org/\w+/(svg|Math/MathML)", "", path.read_text())
        assert not re.search(r"\w+:?//[\w.]+\.\w|@import|url\(", text), path.name


def test_no_script_can_turn_text_into_html():
    sinks = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc"
    for script in SCRIPTS:
        assert not re.search(sinks, script.read_text()), script.name


def test_no_script_reads_the_address():
    for script in SCRIPTS:
        assert not re.search(r"\blocation\b|URLSearchParams", script.read_text()), script.name


def test_every_foreign_file_is_the_one_in_the_table_and_has_its_licence():
    table = re.findall(
        r"^\| (\S+\.js) \| \S+ [\d.]+ \| [\w.-]+ \| (\w{64}) \|$",
        (VENDOR / "README.md").read_text(),
        re.MULTILINE,
    )
    files = list(VENDOR.rglob("*.js"))
    assert {name for name, _ in table} == {path.relative_to(VENDOR).as_posix() for path in files}
    for name, digest in table:
        assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == digest, name
    for folder in {(VENDOR / name).relative_to(VENDOR).parts[0] for name, _ in table}:
        assert "copyright" in (VENDOR / folder / "LICENSE").read_text().lower()
