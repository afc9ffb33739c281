"""Confined formats: the same text, in a process that can be killed."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jaxllama.confined import Confined
from jaxllama.errors import InvalidParameter, TemplateError, WorkerDied
from jaxllama.formats import CallStyle, Message, ModelText, PromptFormat

TEXT = ModelText(template="{{ messages }}", begin="<s>")
SAYS = [Message("user", "hello")]


class Obedient(PromptFormat):
    """Does what the message says."""

    name = "obedient"
    stop = ("<end>",)
    calls = CallStyle.HERMES

    def render(self, messages, *, answer=True):
        match messages[-1].content:
            case "loop":
                while True:
                    pass
            case "grow":
                return "x" * (2 << 30)
            case "die":
                os._exit(3)
            case "write":
                Path("canary").write_text("here")
            case "raise":
                raise KeyError("no such role")
            case "refuse":
                raise InvalidParameter("system comes twice", "messages")
        return f"{messages[-1].role}: {messages[-1].content} {answer} {os.getpid()}"

    def render_tools(self, messages, tools, *, answer=True):
        return f"{len(tools)} tools, {self.render(messages, answer=answer)}"


@pytest.fixture
def confined():
    made = Confined(Obedient(), TEXT, seconds=0.5)
    yield made
    made.close()


def test_it_is_the_format_in_another_process(confined):
    assert (confined.name, confined.stop, confined.calls) == ("obedient", ("<end>",), "hermes")
    text, _, process = confined.render(SAYS).rpartition(" ")
    assert text == "user: hello True"
    assert int(process) != os.getpid()
    tools = confined.render_tools(SAYS, [{"type": "function"}], answer=False)
    assert tools.startswith("1 tools, user: hello False")


@pytest.mark.parametrize(("what", "error"), [("loop", TemplateError), ("die", WorkerDied)])
def test_a_format_that_does_not_come_back_is_killed_and_the_next_is_served(confined, what, error):
    with pytest.raises(error):
        confined.render([Message("user", what)])
    texts = {confined.render(SAYS) for _ in range(100)}
    assert len(texts) <= 2  # by as many processes: none was made for a single request


@pytest.mark.parametrize("what", ["grow", "raise", "write"])
def test_a_format_that_fails_says_so_and_goes_on(confined, what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    process = confined.render(SAYS).rpartition(" ")[2]
    with pytest.raises(TemplateError):
        confined.render([Message("user", what)])
    confined.render(SAYS)
    assert process in {confined.render(SAYS).rpartition(" ")[2] for _ in range(2)}


def test_what_it_refuses_keeps_its_kind(confined):
    with pytest.raises(InvalidParameter, match="system comes twice"):
        confined.render([Message("user", "refuse")])


def test_closing_ends_the_processes(confined):
    process = int(confined.render(SAYS).rpartition(" ")[2])
    confined.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_a_process_that_was_killed_is_replaced_and_no_request_notices(confined):
    """All that run are killed; every next request is rendered by a new one."""
    with ThreadPoolExecutor(4) as pool:
        texts = pool.map(lambda _: confined.render(SAYS), range(40))
        running = {int(text.rpartition(" ")[2]) for text in texts}
    for process in running:
        os.kill(process, signal.SIGKILL)
    for _ in range(2 * len(running)):
        assert int(confined.render(SAYS).rpartition(" ")[2]) not in running


def test_a_death_that_repeats_is_no_mistake_of_the_client(confined):
    with pytest.raises(WorkerDied) as caught:
        confined.render([Message("user", "die")])
    assert caught.value.status == 503
    assert caught.value.retry_after


def test_it_ends_with_us():
    """A process whose other end is closed does not stay behind."""
    made = Confined(Obedient(), TEXT)
    made.render(SAYS)
    worker = made._workers.ask(lambda worker: worker)
    worker._pipe.close()
    assert worker._process.wait(10) == 0


def test_several_can_be_asked_at_once():
    made = Confined(Obedient(), TEXT, seconds=5.0)
    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(lambda _: made.render(SAYS), range(40)))
    made.close()
    assert 1 <= len(set(texts)) <= 4
