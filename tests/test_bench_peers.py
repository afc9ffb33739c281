"""The peers of bench/ in processes of their own, with fakes for the engines that they start."""

import importlib
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner, Result

BENCH = Path(__file__).parents[1] / "bench"
TINY = "tiny-q4_0"
SIZES = {"sequences": 3, "length": 24, "threads": 1}
PROMPT = [5, 6, 7, 8]

pytestmark = pytest.mark.usefixtures("no_samplers", "quick_programs")

# OpenVINO GenAI in so far as the worker uses it. The name of the model's file says what it does.
OPENVINO = """
import numpy as np

class Tensor:
    def __init__(self, ids):
        assert ids.dtype == np.int64
        self.ids = ids
"""
OPENVINO_GENAI = """
import sys
from types import SimpleNamespace

class SchedulerConfig:
    pass

class GenerationConfig:
    def __init__(self, *, max_new_tokens, ignore_eos, do_sample, apply_chat_template):
        assert ignore_eos and not do_sample and not apply_chat_template
        self.count = max_new_tokens

class Request:
    def __init__(self, ids, count):
        self.ids, self.left, self.unread = ids, count, []

    def can_read(self):
        return bool(self.unread)

    def read(self):
        return {0: SimpleNamespace(generated_ids=[self.unread.pop()])}

class ContinuousBatchingPipeline:
    def __init__(self, path, scheduler, device, properties):
        assert not {"jax", "jaxllama"} & sys.modules.keys()
        assert device == "CPU" and not scheduler.enable_prefix_caching
        if "refused" in path or "default" in path and len(properties) > 1:
            raise RuntimeError("Exception from a file:5:\\nno such precision")
        self.path, self.scheduler, self.requests, self.seen = path, scheduler, [], set()

    def get_tokenizer(self):
        return SimpleNamespace(get_vocab=lambda: {"a": 0, "b": 1, "c": 2})

    def add_request(self, number, tensor, config):
        assert number not in self.seen
        self.seen.add(number)
        assert tensor.ids.shape[1] <= self.scheduler.max_num_batched_tokens
        self.requests.append(Request(tensor.ids[0].tolist(), config.count))
        return self.requests[-1]

    def has_non_finished_requests(self):
        return any(request.left for request in self.requests)

    def step(self):
        for request in self.requests:
            if request.left:
                request.left = 0 if "short" in self.path else request.left - 1
                request.unread += [] if "silent" in self.path else [1]
"""

# A llama-server with a clock of its own: repacked weights take half the time.
LLAMA_SERVER = """#!PYTHON
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
options = sys.argv[sys.argv.index("-tb") + 2 :]
assert not {"jax", "jaxllama"} & sys.modules.keys()
if "nothing" in given["-m"] or "-fa" in options:
    print("loading", flush=True)
    sys.exit("error: unknown argument")
slots = [[] for _ in range(int(given["-np"]))]
room = int(given["-c"]) // len(slots)

class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def answer(self, value, code=200):
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        models = {"data": [{"meta": {"n_vocab": 512}}]}
        self.answer({"/health": {"status": "ok"}, "/v1/models": models}[self.path])

    def do_POST(self):
        assert self.path == "/completion"
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt, count = asked["prompt"], asked["n_predict"]
        if len(prompt) + count > room:
            return self.answer({"error": "too long"}, 400)
        cached = asked["cache_prompt"] and slots[asked["id_slot"]] == prompt
        slots[asked["id_slot"]] = prompt
        computed = 1 if cached or "cached" in given["-m"] else len(prompt)
        timings = {"prompt_n": computed, "prompt_ms": 10 if "-rtr" in options else 20}
        decoded = 1 if "brief" in given["-m"] else count
        self.answer({"tokens_predicted": decoded, "timings": timings})

ThreadingHTTPServer((given["--host"], int(given["--port"])), Handler).serve_forever()
"""


@pytest.fixture(autouse=True)
def on_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.syspath_prepend(BENCH)


@pytest.fixture
def openvino(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The Python of an environment with the fake of OpenVINO GenAI."""
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "openvino.py").write_text(OPENVINO)
    (packages / "openvino_genai.py").write_text(OPENVINO_GENAI)
    monkeypatch.setenv("PYTHONPATH", str(packages))
    return Path(sys.executable)


@pytest.fixture
def server(tmp_path: Path) -> Path:
    """The fake of llama-server."""
    program = tmp_path / "llama-server"
    program.write_text(LLAMA_SERVER.replace("PYTHON", sys.executable))
    program.chmod(0o755)
    return program


def module(name: str) -> ModuleType:
    return importlib.import_module(name)


def run(name: str, *arguments: str) -> Result:
    return CliRunner().invoke(module(name).main, ["-m", TINY, *arguments])


def records(name: str, *arguments: str) -> list[dict[str, Any]]:
    """What a script prints about the peer."""
    result = run(name, "--json", "--repetitions", "1", *arguments)
    assert result.exit_code == 0, result.output
    found = [json.loads(line) for line in result.stdout.splitlines()]
    return [record for record in found if "peer" in record]


def opened(openvino: Path, name: str) -> Any:
    """A peer on a file of this name, which says what the fake of OpenVINO GenAI does."""
    return module("openvino_peer").OpenvinoPeer(Path(name), **SIZES, python=openvino)


def served(server: Path, name: str) -> Any:
    """A peer on a file of this name, which says what the fake of llama-server does."""
    return module("ik_llamacpp").IkLlamaCppPeer(Path(name), **SIZES, server=server)


# The options.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--peer-python", sys.executable), "--peer-python needs --peer openvino"),
        (
            ("--peer", "llama.cpp", "--peer-python", sys.executable),
            "--peer-python needs --peer openvino",
        ),
        (("--peer-server", sys.executable), "need each other"),
        (("--peer", "openvino", "--peer-server", sys.executable), "need each other"),
        (("--peer", "ik_llama.cpp"), "build/bin/llama-server"),
        (("--peer", "openvino", "--peer-python", "/no/python"), "/no/python"),
    ],
)
def test_options_that_do_not_fit_the_peer_are_refused(
    arguments: tuple[str, ...], said: str
) -> None:
    result = run("prefill", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr


def test_samplers_are_compared_with_llama_cpp_alone() -> None:
    result = run("sampling", "--peer", "openvino")
    assert result.exit_code == 2
    assert "'llama.cpp'" in result.stderr


def test_an_environment_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module("openvino_peer"), "PYTHON", Path("/no/python"))
    result = run("prefill", "--tokens", "15", "--peer", "openvino")
    assert result.exit_code == 2
    assert "/no/python" in result.stderr and "make openvino" in result.stderr


def test_an_environment_without_the_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module("openvino_peer"), "INSTALLED", "raise SystemExit(1)")
    with pytest.raises(Exception, match="openvino-genai is not installed there"):
        module("openvino_peer").checked(Path(sys.executable))


def test_make_bench_gives_the_peer_to_the_scripts_that_know_it() -> None:
    makefile = (BENCH.parent / "Makefile").read_text()
    assert "COMPARED := decode prefill $(if $(filter llama.cpp,$(PEER)),sampling)" in makefile


# OpenVINO GenAI.


def test_openvino_is_measured_in_turn(openvino: Path) -> None:
    given = ("--peer", "openvino", "--peer-python", str(openvino))
    (found,) = records("prefill", "--tokens", "15", *given)
    assert found["peer"] == "openvino"
    assert found["peer_setting"] in module("openvino_peer").SETTINGS
    assert found["peer_value"] > 0


def test_openvino_decodes_all_sequences_together(openvino: Path) -> None:
    with opened(openvino, "model.gguf") as peer:
        assert peer.vocab == 3
        peer.fill(PROMPT)
        assert peer.decode_rate(len(PROMPT), 8) > 0
        assert len(peer.workers) == 1


def test_a_setting_that_openvino_refuses_is_left_out_and_named(openvino: Path) -> None:
    with opened(openvino, "default.gguf") as peer:
        assert peer.prompt_rate(PROMPT) > 0
        failed = "f32 it fails: Exception from a file:5: no such precision"
        assert peer.setting == f"default settings; with {failed}"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("refused.gguf", "OpenVINO GenAI cannot be measured; with default settings it fails"),
        ("silent.gguf", "gives no token"),
        ("short.gguf", "never decode together"),
    ],
)
def test_what_openvino_cannot_measure_is_said(openvino: Path, name: str, said: str) -> None:
    with pytest.raises(Exception, match=said), opened(openvino, name) as peer:
        peer.fill(PROMPT)
        peer.decode_rate(len(PROMPT), 8) if name == "short.gguf" else peer.prompt_rate(PROMPT)


# ik_llama.cpp.


def test_ik_llama_cpp_is_measured_with_its_fastest_options(server: Path) -> None:
    given = ("--peer", "ik_llama.cpp", "--peer-server", str(server))
    (found,) = records("prefill", "--tokens", "24", *given)
    assert (found["peer"], found["peer_value"]) == ("ik_llama.cpp", 2400.0)
    assert found["peer_setting"].startswith("-rtr; with -fa off it fails: ends with code 1")
    assert "error: unknown argument" in found["peer_setting"]


def test_slots_of_the_server_decode_from_their_own_caches(server: Path) -> None:
    with served(server, "model.gguf") as peer:
        peer.fill(PROMPT)
        assert peer.decode_rate(len(PROMPT), 8) > 0


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing.gguf", "ik_llama.cpp cannot be measured; with no options it fails: ends with"),
        ("cached.gguf", "computed 1 of 4 prompt tokens"),
        ("brief.gguf", "decoded 1 tokens instead of 8"),
    ],
)
def test_what_the_server_does_not_do_is_said(server: Path, name: str, said: str) -> None:
    with pytest.raises(Exception, match=said), served(server, name) as peer:
        peer.fill(PROMPT)
        peer.decode_rate(len(PROMPT), 8) if name == "brief.gguf" else peer.prompt_rate(PROMPT)


def test_a_server_that_refuses_a_request_is_quoted(server: Path) -> None:
    with (
        pytest.raises(Exception, match=r"/completion says 400: .*too long"),
        served(server, "model.gguf") as peer,
    ):
        peer.prompt_rate([1] * 2000)


def test_the_server_ends_with_its_peer(server: Path) -> None:
    with served(server, "model.gguf") as peer:
        running = servers(server)
        assert len(running) == len(peer.workers) == 2
    assert servers(server) == []


def servers(program: Path) -> list[str]:
    """The processes that run a program."""
    commands = [
        path.read_bytes().decode().split("\0")
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if os.access(path, os.R_OK)
    ]
    return [words[1] for words in commands if str(program) in words[:2]]
