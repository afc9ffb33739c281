"""A real browser for the tests of the pages: Debian's chromium, driven by Playwright.

The fixtures `site` (a server on a scripted engine), `browser` and `page` are for all tests of this
folder (`conftest.py`); tests that use them are skipped where playwright or chromium is missing.
"""

import asyncio
import json
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from jaxllama.config import EngineConfig
from jaxllama.intake import Intake
from jaxllama.registry import PRESETS, SAMPLERS, load_plugins
from jaxllama.sampling import Preset, Sampler
from jaxllama.serve.server import Server
from jaxllama.serve.settings import Settings
from jaxllama.service import GenerationService, Model
from jaxllama.service.bounds import Bounds
from jaxllama.service.served_models import ServedModels
from jaxllama.testing import ByteTokenizer, ScriptedEngine
from jaxllama_formats.chatml import ChatMl
from jaxllama_formats.plain import Plain
from jaxllama_formats.template import Template

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

PATIENCE = 20_000  # milliseconds before a test gives up, on a machine that does much else
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
HOSTILE = (
    "<script>hacked = 1</script> <img src=x onerror='hacked = 1'> "
    "<svg onload='hacked = 1'></svg> [click](javascript:hacked=1) "
    "![remote](https://evil.test/x.png) <a href='javascript:hacked=1'>x</a> "
    "`<b>` **<iframe src=javascript:hacked=1>** \n\n```\n</code><script>hacked = 1</script>\n```\n"
)
RICH = r"""# Heading

A [link](https://example.com/a?b=c), [mail](mailto:a@b.test), [file](file:///etc/passwd),
[here](/v1/models), a price of $5 or $10, ~~gone~~, 1 &lt; 2, [defined] and $e^{i\pi}$.

| Name | Value |
|:-----|------:|
| one | <b>1</b> |
| two | `2` |

> quoted
> > twice

- [x] done
- [ ] to do

1. first
   - inner

   more
2. second

\[\frac{a}{b} \href{javascript:hacked=1}{x}\]

$$\frac{a}{b}$$

$$\class{x}{$$

```python
def f(x):
    return "<b>"  # comment
```

```no-such-language/../../js/main
x
```

[defined]: https://example.com/defined "<img src=x onerror='hacked = 1'>"
"""
ANSWERS = {
    "hostile": HOSTILE,
    "markdown": "**bold** and *soft*\n\n- one\n- two `code`\n\n```py\nx = 1\n```\n2 * 3 * 4",
    "rich": RICH,
    "object": '{"name": "Ada", "age": 36, "tags": ["x", "y"], "home": {"town": "Londinum", '
    '"warm": true}}',
    "long": "word " * 150,
    "nothing": "",
    "think": "<think>\nTwo <b>and</b> two.\n</think>\n\nFour.",
    "call": "<think>\nLook.\n</think>\n\n<tool_call>\n"
    '{"name": "look", "arguments": {"word": "<b>", "deep": {"a": [1, 2]}}}\n</tool_call>',
}
TEMPLATE = (  # of a model that thinks and calls tools
    "{% for m in messages %}{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant\n{% endif %}"
    "{# the model writes <think> and </think> and <tool_call>, see tools #}"
)


class Held(Sequence[int]):
    """An answer that goes no further than its first part until it is let go."""

    def __init__(self, first: bytes, rest: bytes) -> None:
        self.text, self.first = first + rest, len(first)
        self.gate = threading.Event()

    def __len__(self) -> int:
        return len(self.text)

    def __getitem__(self, index: Any) -> Any:
        if index >= self.first:
            self.gate.wait(30)
        return self.text[index]


@dataclass
class Script:
    """Answers by the last thing that was said; whatever else is said is answered in turn."""

    count: int = 0
    held: Held | None = None
    otherwise: Callable[[], Sequence[int]] | None = None  # makes the answers to whatever else
    prompt: str = ""  # the last one

    def __call__(self, prompt: tuple[int, ...]) -> Sequence[int]:
        self.prompt = bytes(token for token in prompt if token < 256).decode()
        said = self.prompt.split("user\n")[-1].split("\n")[0]
        if said == "hold":
            assert self.held is not None
            return self.held
        if said in ANSWERS:
            return ANSWERS[said].encode()
        if self.otherwise is not None:
            return self.otherwise()
        self.count += 1
        return f"Answer {self.count} to {said}.".encode()


@dataclass
class Site:
    """A server in a thread of its own."""

    url: str
    script: Script
    defaults: dict[str, object]  # recommended sampling, as the model's intake has it
    requests: list[dict[str, Any]] = field(default_factory=list)

    @contextmanager
    def holding(self, first: str, rest: str) -> Iterator[Callable[[], None]]:
        """An answer to "hold" that waits in the middle until the function given is called."""
        held = self.script.held = Held(first.encode(), rest.encode())
        try:
            yield held.gate.set
        finally:
            held.gate.set()


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """The server with every installed sampler and format, on a scripted engine."""
    yield from serving()


def serving(slots: int = 4) -> Iterator[Site]:
    """Yield such a server, and stop it in the end."""
    from tests.serve.dialects import everyone  # noqa: PLC0415 - it imports conftest.py itself

    script = Script()
    config = EngineConfig(slots=slots, context=4096, steps_per_sync=1)
    samplers = load_plugins(SAMPLERS, Sampler).loaded
    engine = ScriptedEngine(script, config=config, samplers=samplers)
    presets = load_plugins(PRESETS, Preset).loaded
    tokenizer = ByteTokenizer(template=TEMPLATE)
    others = [Plain(), Template.for_model(tokenizer.text)]
    intake = Intake(tokenizer, ChatMl(), engine.bank, config, presets=presets, other_formats=others)
    ready: Future[tuple[str, Callable[[], object]]] = Future()

    async def serve() -> None:
        service = GenerationService(lambda: Model("scripted", engine, intake), Bounds())
        server = Server(
            ServedModels.single(service), Settings(port=0, drain_timeout=0.0), everyone()
        )
        await server.start()
        while service.state == "loading":
            await asyncio.sleep(0.01)
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        ready.set_result((server.url, lambda: loop.call_soon_threadsafe(stop.set)))
        await stop.wait()
        await server.stop()

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            ready.set_exception(error)

    thread = threading.Thread(target=run)
    thread.start()
    url, stop = ready.result(30)
    yield Site(url, script, intake.defaults)
    stop()
    thread.join()


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """One browser for all tests of a file."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs chromium: apt install chromium")
    api.expect.set_options(timeout=PATIENCE)
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def page(site: Site, browser: "Browser") -> "Iterator[Page]":
    """The first page, freshly opened in a browser that knows nothing yet.

    Whatever a test does: the page asks nobody but its own server, and nothing goes wrong in it. A
    refusal of the server, which the browser notes too, is not something that goes wrong.
    """
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(PATIENCE)
    wrong: list[str] = []
    site.requests.clear()

    def note(message: "ConsoleMessage") -> None:
        refused = message.text.startswith("Failed to load resource: the server responded with")
        if message.type in ("error", "warning") and not refused:
            wrong.append(message.text)

    def see(request: Any) -> None:
        if not request.url.startswith((site.url, "blob:")):
            wrong.append(f"asked {request.url}")
        if request.method == "POST" and "json" in request.headers.get("content-type", ""):
            site.requests.append(json.loads(request.post_data))

    context.on("console", note)
    context.on("weberror", lambda error: wrong.append(str(error.error)))
    context.on("request", see)
    page = context.new_page()
    visit(page, site.url)
    yield page
    context.close()
    assert wrong == []


def visit(page: "Page", url: str) -> None:
    page.goto(url)
    page.wait_for_selector("html[data-ready]", state="attached")


def tab_to(page: "Page", name: str, *, back: bool = False, until: str | None = None) -> None:
    """Press Tab until the control of this name has the focus."""
    wanted = until or name
    label = (
        "document.activeElement.getAttribute('aria-label') || "
        "document.activeElement.labels?.[0]?.innerText || document.activeElement.innerText"
    )
    for _ in range(100):
        if page.evaluate(label) == wanted:
            return
        page.keyboard.press("Shift+Tab" if back else "Tab")
    raise AssertionError(f"no Tab leads to {wanted!r}")


def say(page: "Page", text: str) -> None:
    """Send a message on the chat page; comes back when the answer is there."""
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")
    done(page)


def done(page: "Page") -> None:
    """Wait until no answer is on its way."""
    page.get_by_role("button", name="Send", exact=True).wait_for()
    page.evaluate("new Promise(requestAnimationFrame)")


def texts(page: "Page") -> list[str]:
    """The messages that the chat page shows."""
    return page.locator(".message .body").all_inner_texts()


def act(page: "Page", index: int, name: str) -> None:
    """Press one of a message's buttons."""
    page.locator(".message").nth(index).get_by_role("button", name=name, exact=True).click()
