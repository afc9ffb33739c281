"""docs/moving-here.md is true: its routes, fields and options are those of the code."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from jaxllama.cli.main import main
from jaxllama.cli.origins import ORIGINS
from jaxllama.cli.origins.flags import TheirFlag
from jaxllama.limits import FRONT, LIMITS
from jaxllama.sampling import knobs_of
from jaxllama.serve.endpoints import Endpoint
from tests.serve.dialects import everyone
from tests.support import installed_samplers

DOCUMENT = (Path(__file__).parents[1] / "docs/moving-here.md").read_text()
OURS = ("openai", "native")  # described in the README
OWN_ROUTES = "/v1/rooms"  # that a dialect adds for our page
DIALECTS = {each.name: each for each in everyone() if each.name not in OURS}
SECTIONS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", DOCUMENT, re.S | re.M))
ROUTE = re.compile(r"(?:GET|POST|DELETE) /\S*")
OPTION = re.compile(r"--[a-z][a-z-]+")
# Words of other systems or of our routes that a cell of ours may have.
WORDS = {
    *("pong", "done", "raw", "format", "prompt", "model", "message", "stop"),
    *("num_predict", "repeat_penalty", "repeat_last_n"),
}
KNOBS = {
    *LIMITS,
    *FRONT,
    *(name for kind in installed_samplers().values() for name in knobs_of(kind)),
}


def rows(text: str, head: str) -> Iterator[list[str]]:
    """The cells of the tables whose first column is called `head`."""
    for table in re.findall(rf"^\| {head} \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.M):
        for line in table.splitlines():
            yield [cell.strip() for cell in line.strip("|").split(" | ")]


def named(cell: str) -> str:
    """The name in the first cell of a row."""
    found = re.fullmatch(r"`([^`]+)`", cell)
    assert found, cell
    return found[1]


def endpoints_of(name: str) -> list[Endpoint]:
    """The endpoints of an API that its own system has, too."""
    return [each for each in DIALECTS[name].endpoints if not each.path.startswith(OWN_ROUTES)]


def flag_row(flag: TheirFlag) -> str:
    """The row of a flag of another program's command line."""
    names = ", ".join(f"`{name}`" for name in flag.names)
    return f"| {names} | {flag.ours} | {flag.difference} |".replace("|  |", "| |")


def test_every_api_has_a_section():
    assert set(SECTIONS) == set(DIALECTS)


@pytest.mark.parametrize("name", DIALECTS)
def test_the_routes_are_those_of_the_code(name):
    before = SECTIONS[name].partition("\n### ")[0]
    told = [named(row[0]) for row in rows(before, "theirs")]
    theirs = [f"{each.method} {each.plain_path}" for each in endpoints_of(name)]
    assert sorted(told) == sorted(theirs)


@pytest.mark.parametrize("name", DIALECTS)
def test_the_fields_are_those_of_the_code(name):
    bodies = {
        f"{each.method} {each.plain_path}": set(each.body.__struct_encode_fields__)
        for each in endpoints_of(name)
        if each.body is not None
    }
    told: set[str] = set()
    for part in SECTIONS[name].split("\n### ")[1:]:
        heading, _, text = part.partition("\n")
        routes = ROUTE.findall(heading.replace("`", " "))
        fields = [named(row[0]) for row in rows(text, "theirs")]
        assert set(fields) == set().union(*(bodies[route] for route in routes)), heading
        assert len(set(fields)) == len(fields)
        told |= set(routes)
    assert told == set(bodies)


@pytest.mark.parametrize("name", DIALECTS)
def test_the_options_are_those_of_the_code(name):
    told = [named(row[0]) for row in rows(SECTIONS[name], "option")]
    fields = DIALECTS[name].options_type.__struct_fields__
    assert told == [f"{name}.{field}" for field in fields]


@pytest.mark.parametrize("name", DIALECTS)
def test_knobs_and_options_of_ours_exist(name):
    serve = main.get_command(click.Context(main), "serve")
    options = {word for param in serve.get_params(click.Context(serve)) for word in param.opts}
    for row in rows(SECTIONS[name], "theirs"):
        assert {*re.findall(r"`(\w+)`", row[1])} <= KNOBS | WORDS, row
    told = {*OPTION.findall(SECTIONS[name])}
    theirs = {word for row in rows(SECTIONS[name], "option") for word in OPTION.findall(row[1])}
    assert told - theirs <= options


def test_a_field_that_is_missing_would_be_noticed():
    text = SECTIONS["rllama"].replace("| `top_k` |", "| `top_kk` |")
    names = {named(row[0]) for row in rows(text, "theirs")}
    assert "top_kk" in names and "top_k" not in names


def test_every_command_line_has_a_section():
    assert re.findall(r"^### compat (\S+)$", DOCUMENT, re.M) == list(ORIGINS)


@pytest.mark.parametrize("name", ORIGINS)
def test_the_flags_are_those_of_the_code(name):
    section = DOCUMENT.partition(f"### compat {name}\n")[2].partition("\n###")[0]
    told = [line for line in section.splitlines() if line.startswith("| ")][1:]
    assert told == [flag_row(each) for each in ORIGINS[name].flags]


@pytest.mark.parametrize("name", ORIGINS)
def test_options_of_ours_for_their_flags_exist(name):
    ours = {
        word
        for command in ("generate", "chat", "serve")
        for param in main.get_command(click.Context(main), command).get_params(
            click.Context(click.Command(command))
        )
        for word in param.opts
    }
    for flag in ORIGINS[name].flags:
        assert {*OPTION.findall(flag.ours)} <= ours, flag
        for option in re.findall(r"`(\w+)[.](\w+)`", flag.ours):
            assert option[1] in DIALECTS[option[0]].options_type.__struct_fields__
