"""Rows, templates and plans of the batch page: the same as those of the command line."""

import json
from pathlib import Path
from typing import Any

import pytest

from jaxllama.cli.batch_file import BatchFile, PromptTemplate
from jaxllama.cli.placeholders import fill
from jaxllama.cli.rows import read_rows
from jaxllama.cli.terminal import as_json
from jaxllama.errors import InvalidParameter

pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")

from playwright.sync_api import Page

ROWS = """async ([kind, text]) => {
  const { readRows, textOf, RowError } = await import("/page/js/rows.js");
  try {
    return readRows(kind, text).map(({ line, values }) =>
      [line, [...values].map(([name, value]) => [name, textOf(value)])]);
  } catch (error) {
    if (!(error instanceof RowError)) throw error;
    return error.message;
  }
}"""
CSV = [
    "",
    "\n",
    "a\n",
    "a,b\n1,2",
    "a,b\r\n1,2\r\n3,4\r\n",
    "a,b\r1,2\r",
    'a,b\n"1,\n""2""",3\n4,5\n',
    'a,b\n"1\r\n2\r3",x\n,\n',
    'a,b\n1"x,"2"\n',
    'a,b\n"1"x,2\n',
    'a,b\n"1" ,2\n',
    'a,b\n"1,2\n',
    'a\n"1\n\n',
    'a,b\n"1",',
    'a,b\n"","',
    "a,b\n1\n",
    "a,b\n1,2,3\n",
    "a,a\n1,2\n",
    "a,\n1,2\n",
    "\na,b\n1,2\n",
    "a,b\n\n1,2\n\n",
    "a,b\n \n",
    "a;b\n1;2\n",
    "\ufeffa,b\n1,2\n",
    "a\n<img src=x onerror='hacked = 1'>\n",
    "n\n\x00\u2028\U0001f600\n",
    "__proto__,constructor\nx,y\n",
]
JSONL = [
    "",
    "{}\n",
    '{"a": 1, "b": [1, 2.0, -0, -0.0, 1e5, 1e16, 1e-5, 1.5e300, 0.1, 123456789012345678901]}\n',
    '{"a": 0.0001, "b": 1e22, "c": 12345678.9, "d": 1E+2, "e": 5e-324, "f": 1e400}\n',
    '{"a": {"b": [true, false, null], "c": "x\\n\\u00e9\\ud83d\\ude00\\"\\\\/\\/"}}\n',
    '{"a": 1}\n\n {"a": "2"} \r\n',
    '{"b": 1, "1": 2, "a": 3, "b": 4}\n',
    '{"__proto__": 1, "constructor": {"__proto__": []}}\n',
    '{"a": NaN, "b": [Infinity, -Infinity]}\n',
    "{'a': 1}\n",
    '{"a": 1,}\n',
    '{"a": [1,]}\n',
    '{"a": 01}\n',
    '{"a": "\t"}\n',
    '{"a": "\\x"}\n',
    '{"a": 1} 2\n',
    "[1]\n",
    "1\n",
    '{"a": "x}\n',
    '{"a": 1\n}\n',
    '\ufeff{"a": 1}\n',
    '{"a": "<b>\u2028</b>"}\n',
]


def of_the_command_line(kind: str, text: str, folder: Path) -> Any:
    path = folder / f"rows.{kind}"
    path.write_bytes(text.encode())
    try:
        return [
            [row.line, [[name, as_text(value)] for name, value in row.values.items()]]
            for row in read_rows(path)
        ]
    except InvalidParameter as error:
        return str(error).removeprefix(f"{path} ")


def as_text(value: object) -> str:
    return value if isinstance(value, str) else as_json(value)


@pytest.mark.parametrize(
    ("kind", "texts"), [("csv", CSV), ("jsonl", JSONL), ("txt", ["", "a\n\n b \r\nc"])]
)
def test_a_file_has_the_rows_that_the_command_line_reads(
    page: Page, tmp_path: Path, kind: str, texts: list[str]
):
    for text in texts:
        ours, theirs = page.evaluate(ROWS, [kind, text]), of_the_command_line(kind, text, tmp_path)
        if isinstance(theirs, str):
            assert isinstance(ours, str), text
            assert ours.split(":")[0] == theirs.split(":")[0] or "is empty" in theirs, text
        else:
            assert ours == theirs, text


TEMPLATES = [
    "{a}",
    "{{a}} {{{a}}} {a}{b c}",
    "{missing}",
    '{"a": {a}, "b": [{b c}]}',
    "{1}{ a}{a }{-a}{é}{a-b}{_}",
    "{a\n}{}{{}}{{a}",
    "{\u0301a}{\u2160}{\u0661}{a\u0661}",
    "$& $1 {a} $$",
]


def test_a_template_is_filled_as_at_the_command_line(page: Page):
    values = {"a": "A$&{b c}", "b c": [1, {"x": None}], "é": 1.0, "a-b": "", "_": True}
    values |= {"\u2160": "I", "a\u0661": "1", "a ": "blank"}
    for template in TEMPLATES:
        try:
            theirs = fill(template, values)
        except InvalidParameter as error:
            theirs = str(error).split(";")[0]
        ours = page.evaluate(
            """async ([template, line]) => {
              const { readRows } = await import("/page/js/rows.js");
              const { fill } = await import("/page/js/template.js");
              const [{ values }] = readRows("jsonl", line);
              try {
                return fill(template, values);
              } catch (error) {
                return error.message.split(";")[0];
              }
            }""",
            [template, json.dumps(values)],
        )
        assert ours == theirs, template


@pytest.mark.parametrize("mode", ["chat", "completion"])
def test_a_plan_has_the_requests_of_jaxllama_batch(page: Page, tmp_path: Path, mode: str):
    text = 'id,name\nx1,"<b>, ""B"""\nx2,two\n'
    (tmp_path / "values.csv").write_text(text)
    knobs = {"seed": 7, "temperature": 0.5}
    source = BatchFile(tmp_path / "values.csv", lambda _: None, knobs, 3)
    is_chat = mode == "chat"
    source.template = PromptTemplate("Hello {name}", is_chat, "You are {id}" if is_chat else None)
    lines = page.evaluate(
        """async ([text, mode, knobs]) => {
          const { readRows } = await import("/page/js/rows.js");
          const { linesOf } = await import("/page/js/plan.js");
          const rows = readRows("csv", text);
          const plan = { mode, system: "You are {id}", template: "Hello {name}", rows, count: 3 };
          return linesOf({ ...plan, knobs, format: "", model: "m" });
        }""",
        [text, mode, knobs],
    )
    items = list(source.items())
    assert len(lines) == len(items) == 6
    for line, item in zip(lines, items, strict=True):
        sent = json.loads(line)
        body = sent["body"]
        assert body.pop("model") == "m"
        assert body.pop("messages" if is_chat else "prompt") == item.content
        assert body == item.knobs
        assert sent["custom_id"] == f"{item.index}.{item.answer} {item.id}"
        assert sent["url"] == ("/v1/chat/completions" if is_chat else "/v1/completions")


def test_without_values_a_prompt_stays_as_it_is_and_every_answer_has_its_own_seed(page: Page):
    lines = page.evaluate(
        """async () => {
          const { linesOf } = await import("/page/js/plan.js");
          const plan = { mode: "completion", system: "", template: "{{a}} {b}", rows: [] };
          return linesOf({ ...plan, count: 50, knobs: {}, format: "", model: "m" });
        }"""
    )
    bodies = [json.loads(line)["body"] for line in lines]
    assert {body["prompt"] for body in bodies} == {"{{a}} {b}"}
    assert len({body["seed"] for body in bodies}) == 50
    assert all(0 <= body["seed"] < 2**63 for body in bodies)


def test_a_cut_text_has_the_fields_that_are_there(page: Page):
    whole = '{"a": "x\\u00e9\\n", "b": [1, -2.5e3, {"c": true}], "d": null}'
    read = """async (text) => {
      const { readJson, plainValue } = await import("/page/js/json.js");
      const node = readJson(text, true);
      return node === null ? null : [plainValue(node), node.isWhole, node.end];
    }"""
    for length in range(len(whole)):
        found = page.evaluate(read, whole[:length])
        assert found is None or found[1] is False, whole[:length]
    assert page.evaluate(read, whole) == [json.loads(whole), True, len(whole)]
    assert page.evaluate(read, '{"a": "x\\u00')[0] == {"a": "x"}
    assert page.evaluate(read, '{"a": 1, "b')[0] == {"a": 1}
    assert page.evaluate(read, '{"a": tr')[0] == {"a": None}
