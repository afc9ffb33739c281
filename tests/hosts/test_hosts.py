"""Several processes that run one model: the tokens of one process, and an end when one is lost."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from jaxllama import hosts
from jaxllama.kernels.cpu import library
from jaxllama.testing import FAMILIES, random_params
from tests.adapter_writer import random_adapter, write_adapter
from tests.support import QUICK_FLAGS, QUICK_PROCESS
from tests.weights.writers import flatten, gguf_vocabulary, write_gguf

ROOT = Path(__file__).parents[2]
CONFIG = dataclasses.replace(
    FAMILIES["llama3"], heads=8, kv_heads=4, head_dim=32, width=256, ffn_width=256, vocab_size=320,
    max_context=256,
)  # fmt: skip
BUILT = pytest.mark.skipif(not library.available(), reason=library.why_not())


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    weights = flatten(random_params(CONFIG))
    write_gguf(path, CONFIG, weights, kind="Q4_0", metadata=gguf_vocabulary(CONFIG.vocab_size))
    return path


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("adapter"), random_adapter(CONFIG))


def started(model: Path, devices: int, settings: dict[str, Any], **more: str) -> subprocess.Popen:
    flags = f"{QUICK_FLAGS} --xla_force_host_platform_device_count={devices}"
    quickly = QUICK_PROCESS | {"XLA_FLAGS": flags}
    environment = os.environ | quickly | {"JAX_PLATFORMS": "cpu"} | more
    command = [sys.executable, "-m", "tests.hosts.program", str(model), json.dumps(settings)]
    return subprocess.Popen(
        command, env=environment, cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@contextmanager
def group_of(
    count: int, model: Path, devices: int, folder: Path | None = None, **settings: Any
) -> Iterator[list[Any]]:
    """Processes that run the model together; with `folder`, they keep their programs there."""
    more = {} if folder is None else {"TMPDIR": str(folder)}
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    processes = [
        started(
            model, devices, settings,
            **{hosts.ADDRESS: address, hosts.COUNT: str(count), hosts.INDEX: str(index)} | more,
        )
        for index in range(count)
    ]  # fmt: skip
    try:
        yield processes
    finally:
        for each in processes:
            each.kill()
            each.communicate()


def ended(processes: Sequence[Any], seconds: float = 300) -> list[tuple[int, str, str]]:
    """Wait for all processes; return their exit codes, outputs and logs."""
    told = [each.communicate(timeout=seconds) for each in processes]
    return [(each.returncode, *texts) for each, texts in zip(processes, told, strict=True)]


def answers_in(output: str) -> Any:
    """Return the answers that host 0 has printed, beside a line of the transport."""
    return json.loads(output.splitlines()[-1])


@pytest.mark.parametrize(
    ("kernels", "count", "devices", "mesh"),
    [
        pytest.param("cpu", 4, 1, "model=4", marks=[BUILT, pytest.mark.slow]),
        pytest.param("cpu", 2, 2, "data=2,model=2", marks=[BUILT, pytest.mark.slow]),
        ("xla", 2, 1, "model=2"),
    ],
)
def test_hosts_give_the_bits_of_one_process(model, adapter, kernels, count, devices, mesh):
    settings = {"mesh": mesh, "kernels": kernels, "lora": {"one": str(adapter)}}
    one = started(model, count * devices, settings)
    [(code, expected, log)] = ended([one])
    assert code == 0, log
    with group_of(count, model, devices, **settings) as processes:
        found = ended(processes)
    assert [code for code, *_ in found] == [0] * count, found
    assert answers_in(found[0][1]) == answers_in(expected)


def test_a_second_start_of_a_group_compiles_nothing(model, tmp_path):
    starts, written = [], []
    for _ in range(2):
        with group_of(2, model, 1, tmp_path, mesh="model=2", kernels="xla") as processes:
            starts.append(ended(processes))
        files = tmp_path.rglob("programs-host-?/*/*.program")
        written.append({each: each.stat().st_mtime_ns for each in files})
    assert [code for start in starts for code, *_ in start] == [0] * 4, starts
    assert answers_in(starts[1][0][1]) == answers_in(starts[0][0][1])
    assert len({each.parent for each in written[0]}) == 2
    assert written[1] == written[0]


@pytest.mark.parametrize(
    ("victim", "number"),
    [(1, signal.SIGKILL), pytest.param(0, signal.SIGSTOP, marks=pytest.mark.slow)],
)
def test_a_lost_host_ends_the_group_with_one_clear_line(model, victim, number):
    with group_of(2, model, 1, mesh="model=2", kernels="xla", ask=1000) as processes:
        while not processes[0].stdout.readline().startswith("[["):  # until the model answers
            assert processes[0].poll() is None
        processes[victim].send_signal(number)
        other, begun = processes[1 - victim], time.monotonic()
        [(code, _, log)] = ended([other], 60)
        assert code == hosts.EXIT_CODE
        assert time.monotonic() - begun < 30  # asked: 10 s; machines that run tests are busy
        assert log.count(f"host {victim} is lost") == 1
