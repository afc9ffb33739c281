"""The files of the pages: served from memory, under a policy that lets nothing else in."""

import hashlib
import re
from pathlib import Path

import pytest

import jaxllama.serve.page
from jaxllama.serve.page import PAGES
from jaxllama.serve.page.frame import Frame
from tests.serve.conftest import running, scenario

FOLDER = Path(jaxllama.serve.page.__file__).parent
FILES = sorted(path for path in FOLDER.rglob("*") if path.suffix in (".css", ".js", ".svg"))
VENDOR = FOLDER / "vendor"
OWN = [path for path in FILES if not path.is_relative_to(VENDOR)]
SCRIPTS = [path for path in OWN if path.suffix == ".js"]
FRAME = Frame(FOLDER, PAGES, has_root=True)
DOCUMENTS = {entry.name: FRAME.document(entry) for entry in PAGES}


def test_every_file_is_served_with_its_type():
    types = {
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


def test_every_page_is_at_its_address_whatever_the_address_asks():
    async def body():
        async with running() as live:
            first = PAGES[0].name
            for name, path in [(first, "/"), *((name, f"/page/{name}") for name in DOCUMENTS)]:
                for query in ("", "?q=hello", "?prompt=%3Cscript%3E"):
                    async with live.http.get(live.url + path + query) as response:
                        assert await response.text() == DOCUMENTS[name]
                        assert response.headers["Content-Type"] == "text/html; charset=utf-8"

    scenario(body)


def test_the_navigation_names_the_page_and_leads_to_the_others():
    for entry in PAGES:
        links = re.findall(r'<li><a href="([^"]+)"( aria-current="page")?>', DOCUMENTS[entry.name])
        paths = ["/", *(each.path or f"/page/{each.name}" for each in PAGES[1:])]
        assert [path for path, _ in links] == paths
        assert [path for path, current in links if current] == [paths[PAGES.index(entry)]]


def test_where_another_dialect_has_the_root_the_first_page_has_another_address():
    document = Frame(FOLDER, PAGES, has_root=False).document(PAGES[0])
    assert f'<a href="/page/{PAGES[0].name}" aria-current="page">' in document
    assert 'href="/"' not in document


def test_the_policy_lets_nothing_in_but_the_servers_own_files():
    async def body():
        async with running() as live:
            for path in ("/", f"/page/{PAGES[-1].name}", "/page/js/main.js"):
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
            for path in (
                "__init__.py",
                "none.js",
                "js/",
                "frame.html",
                "../app.py",
                "%2e%2e/app.py",
                "js/..%2f",
            ):
                assert await live.status(f"/page/{path}") == 404, path

    scenario(body)


def test_the_page_needs_no_key():
    async def body():
        async with running(api_keys=("secret",)) as live:
            assert await live.status("/") == 200
            assert await live.status("/page/js/main.js") == 200
            assert await live.status("/say", "POST", json={}) == 401

    scenario(body)


def named_in(document: str) -> set[Path]:
    """The files that a document loads."""
    names = re.findall(r'(?:src|href)="/page/([^"#]+\.\w+)"', document)
    return {FOLDER / name for name in names}


def imports_of(script: Path, pattern: str) -> set[Path]:
    """The scripts that a script imports."""
    names = re.findall(pattern, script.read_text(), re.MULTILINE)
    return {(script.parent / name).resolve() for name in names}


AT_ONCE = r'^(?:import|export) (?:[\w*{},\s]+ from )?"(\.[^"]+)"'
WHEN_NEEDED = r'\bimport\("([^"]+)"\)(?!\.\w+[ }|[])'  # not in the types of comments


def scripts_of(document: str, *, at_once: bool = False) -> set[Path]:
    """All scripts of a page, or those that it loads at once."""
    found: set[Path] = set()
    left = {path for path in named_in(document) if path.suffix == ".js"}
    while left:
        script = left.pop()
        found.add(script)
        imported = imports_of(script, AT_ONCE)
        if not at_once:
            imported |= imports_of(script, WHEN_NEEDED)
        left |= imported - found
    return found


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_file_that_a_page_names_exists(name: str):
    assert named_in(DOCUMENTS[name]) <= set(FILES)
    assert scripts_of(DOCUMENTS[name]) <= set(FILES)
    assert FOLDER / "js" / "theme.js" in scripts_of(DOCUMENTS[name])


def test_every_file_is_used():
    used = set().union(*(named_in(each) | scripts_of(each) for each in DOCUMENTS.values()))
    assert set(OWN) <= used


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_icon_and_element_that_a_script_names_is_there(name: str):
    document = DOCUMENTS[name]
    for script in scripts_of(document) & set(SCRIPTS):
        text = script.read_text()
        for id_ in re.findall(r'byId\("([\w-]+)"\)', text):
            assert f'id="{id_}"' in document, f"{script.name}: #{id_}"
        for found in re.findall(r'icon\("([a-z]+)"\)|(?:iconButton|button)\("([a-z]+)", ', text):
            assert f'id="icon-{"".join(found)}"' in document, f"{script.name}: icon {found}"
    for icon in re.findall(r'href="#(icon-[a-z]+)"', document):
        assert f'id="{icon}"' in document


@pytest.mark.parametrize("name", DOCUMENTS)
def test_no_id_is_there_twice_and_every_reference_leads_to_one(name: str):
    document = DOCUMENTS[name]
    ids = re.findall(r'\sid="([^"]+)"', document)
    assert sorted(ids) == sorted(set(ids))
    named = re.findall(r'(?:\sfor|aria-\w*by|aria-controls|popovertarget)="([^"]+)"', document)
    assert {each for names in named for each in names.split()} <= set(ids)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_first_visit_is_under_250_kilobytes(name: str):
    document = DOCUMENTS[name]
    files = named_in(document) | scripts_of(document, at_once=True)
    assert len(document.encode()) + sum(path.stat().st_size for path in files) < 250_000


def test_nothing_is_inline_and_nothing_comes_from_elsewhere():
    for document in DOCUMENTS.values():
        assert not re.search(r"<style|<script(?![^>]* src=)|\sstyle=|\son\w+=", document)
        assert not re.search(r"\w+:?//[\w.]+\.\w", document)
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
