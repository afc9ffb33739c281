"""Confined: a prompt format that runs in another process, which is killed if it takes too long.

The service wraps the model's own format in it, because a chat template is a program that came with
the model. It blocks, so call it from a thread. Run as a program, this file is that process: it
receives a format and renders conversations until the pipe is closed. Knows no model, no tokens.
"""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from jaxllama.errors import InvalidParameter, JaxLlamaError, TemplateError, WorkerDied
from jaxllama.formats import Message, ModelText, PromptFormat, Tool
from jaxllama.worker_pool import WorkerPool

WORKERS = 4  # one for each thread that prepares requests, so that no thread waits for another
START_SECONDS = 30.0  # until a fresh process has imported the format
MEMORY = 1 << 30  # bytes of address space


class Confined(PromptFormat):
    """A format that behaves like another one, but renders in other processes."""

    def __init__(self, inner: PromptFormat, text: ModelText, *, seconds: float = 2.0) -> None:
        self.name = inner.name  # type: ignore[misc]
        self.stop = inner.stop  # type: ignore[misc]
        self.calls = inner.calls
        self.thinks = inner.thinks
        self._seconds = seconds
        kind = type(inner)
        self._workers = WorkerPool(lambda: RenderWorker(kind, text), WORKERS)

    def render(self, messages: Sequence[Message], *, answer: bool = True) -> str:
        """Return a conversation as prompt text, rendered by the wrapped format in another process.

        `answer`: whether the text is to end where the assistant's next message starts.
        """
        return self._ask("render", (messages,), answer=answer)

    def render_tools(
        self, messages: Sequence[Message], tools: Sequence[Tool], *, answer: bool = True
    ) -> str:
        """Return a conversation and the tools that the model may call as prompt text.

        The wrapped format renders it, in another process. `answer`: whether the text is to end
        where the assistant's next message starts.
        """
        return self._ask("render_tools", (messages, tools), answer=answer)

    def start(self) -> None:
        """Start one of the processes that render, so that the first conversation need not wait."""
        self._workers.start()

    def close(self) -> None:
        """End all processes."""
        self._workers.close()

    def _ask(self, method: str, arguments: tuple[Any, ...], *, answer: bool) -> str:
        question = (method, arguments, answer)
        return self._workers.ask(lambda worker: worker.ask(question, self._seconds))


class RenderWorker:
    """A handle on one process with a prompt format; usable by one thread at a time."""

    def __init__(self, kind: type[PromptFormat], text: ModelText) -> None:
        self._pipe, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "jaxllama.confined", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C in a terminal must not reach it
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        self._pipe.send((kind, text))
        self._receive(START_SECONDS)

    @property
    def alive(self) -> bool:
        """Say whether the process still runs."""
        return self._process.poll() is None

    def ask(self, question: tuple[str, tuple[Any, ...], bool], seconds: float) -> str:
        """Return the rendered text; kill the process if that takes longer than `seconds`.

        `question` holds the name of a method of PromptFormat, its arguments, and whether the text
        is to end where the assistant's next message starts. Raises TemplateError if rendering
        fails or takes too long, WorkerDied if the process has ended.
        """
        try:
            self._pipe.send(question)
        except OSError as error:
            raise WorkerDied(f"the prompt format's process has ended: {error}") from error
        return self._receive(seconds)

    def kill(self) -> None:
        """Kill the process and close the pipe."""
        self._process.kill()
        self._process.wait()
        self._pipe.close()

    def _receive(self, seconds: float) -> str:
        """Wait for the process's answer; return its text, or raise the error that it holds.

        Kills the process and raises TemplateError after `seconds`. The answer is JSON, not a
        pickle, because the code in that process is not trusted.
        """
        try:
            if not self._pipe.poll(seconds):
                raise TemplateError(f"the prompt format takes more than {seconds} s")
            answer = json.loads(self._pipe.recv_bytes())
        except (OSError, EOFError) as error:
            self.kill()
            raise WorkerDied(f"the prompt format's process has ended: {error!r}") from error
        except ValueError as error:
            self.kill()
            raise TemplateError(f"the prompt format's process failed: {error!r}") from error
        except TemplateError:
            self.kill()
            raise
        if "error" not in answer:
            return str(answer["text"])
        if answer["error"] == InvalidParameter.__name__:
            raise InvalidParameter(str(answer["message"]), "messages")
        raise TemplateError(str(answer["message"]))


def serve(pipe: Connection) -> None:
    """Run the process: render each conversation that comes through `pipe`, and send back its text.

    The first message in `pipe` sets the prompt format. Ends when the other side closes `pipe`.
    """
    kind, text = pipe.recv()
    prompt_format = kind.for_model(text)
    pipe.send_bytes(b'{"text": ""}')
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while True:
        try:
            method, arguments, answer = pipe.recv()
        except EOFError:
            return
        try:
            found = {"text": getattr(prompt_format, method)(*arguments, answer=answer)}
        except JaxLlamaError as error:
            found = {"error": type(error).__name__, "message": str(error)}
        except Exception as error:
            words = f"the prompt format failed: {type(error).__name__}: {error}"
            found = {"error": "TemplateError", "message": words}
        pipe.send_bytes(json.dumps(found).encode())


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(Connection(int(sys.argv[1])))
