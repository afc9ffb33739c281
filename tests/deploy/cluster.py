"""`jaxllama deploy` on a Ray cluster of this machine, with the real default model: `make ray`, or

    .venv-ray/bin/python -m tests.deploy.cluster                 # all but autoscale
    .venv-ray/bin/python -m tests.deploy.cluster streams kill    # these
    .venv-ray/bin/python -m tests.deploy.cluster autoscale       # alone: another number of replicas

Runs in an environment that has Ray, so it is no part of `make test`. Starts two replicas, for
autoscale one, and prints a line of JSON for each check. Exits with 1 if one failed, or if a process
is left.
"""
# ruff: noqa: T201 - this is a program

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

SLOTS, QUEUE = 4, 8
START_SECONDS, SECONDS = 400.0, 240.0
REPLICA = "ray::ServeReplica:jaxllama:Replica"
SYSTEM = "You are assistant number {}. " + "Answer in one short and friendly sentence. " * 12


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def stat_of(pid: int) -> tuple[int, float]:
    """Return parent and used CPU seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[1]), (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Program:
    """`jaxllama` with a command, on a free port, until it is stopped."""

    def __init__(self, command: str, *options: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = Path(tempfile.mkdtemp()) / "log"
        line = [sys.executable, "-m", "jaxllama", command, "--port", str(self.port), *options]
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(line, stdout=out, stderr=subprocess.STDOUT)
        self.seen: set[int] = set()

    def wait(self) -> None:
        """Wait until the model is served."""
        end = time.monotonic() + START_SECONDS
        while "ready: open" not in self.log.read_text():
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"it did not start:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.5)

    def processes(self) -> dict[int, str]:
        """Return all processes that this one started, by id, with their command lines."""
        parents, found = {}, {self.process.pid}
        for each in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                parents[int(each.name)] = stat_of(int(each.name))[0]
        grown = True
        while grown:
            new = {pid for pid, parent in parents.items() if parent in found} - found
            found, grown = found | new, bool(new)
        self.seen |= found
        lines = {}
        for pid in found:
            with suppress(OSError):
                lines[pid] = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
        return lines

    def replicas(self) -> list[int]:
        return sorted(pid for pid, line in self.processes().items() if line.startswith(REPLICA))

    def cpu(self) -> float:
        """Return the CPU seconds of all its processes."""
        total = 0.0
        for pid in self.processes():
            with suppress(OSError):
                total += stat_of(pid)[1]
        return total

    def stop(self) -> int:
        if self.process.poll() is None:
            self.processes()
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)

    def left(self) -> list[int]:
        """Return the processes that are left after some seconds, zombies not counted."""
        for _ in range(50):
            alive = []
            for pid in self.seen:
                with suppress(OSError):
                    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
                    alive += [pid] if state != "Z" else []
            if not alive:
                break
            time.sleep(0.2)
        return alive


@contextmanager
def program(command: str, *options: str) -> Iterator[Program]:
    found = Program(command, *options)
    try:
        yield found
    finally:
        if found.process.poll() is None:
            found.stop()
        left = found.left()
        for pid in left:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if left:
            raise RuntimeError(f"processes are left: {left}")


def body(text: str, tokens: int = 16, *, stream: bool = False, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    rest = {"max_tokens": tokens, "stream": stream, "temperature": 0, "ignore_eos": True}
    return {"messages": messages, **rest, **more}


class Client:
    """An HTTP client of one server."""

    def __init__(self, url: str, http: aiohttp.ClientSession) -> None:
        self.url, self.http = url, http

    async def post(self, path: str, content: Any) -> tuple[int, Any, str]:
        """Send one request; return status, headers and body. Status 0: the connection was cut."""
        try:
            async with self.http.post(f"{self.url}{path}", json=content) as response:
                return response.status, response.headers, await response.text()
        except aiohttp.ClientError as error:
            return 0, {}, repr(error)

    async def chat(self, text: str, tokens: int = 16, **more: Any) -> str:
        """Return how one chat request ended: whole, told, cut, refused or an HTTP status."""
        status, headers, raw = await self.post("/v1/chat/completions", body(text, tokens, **more))
        if status in (429, 503):
            return "refused" if "Retry-After" in headers else f"{status} without Retry-After"
        if status == 0:
            return "cut"
        if status != 200:
            return str(status)
        if not more.get("stream"):
            found = json.loads(raw)
            return "whole" if found["usage"]["completion_tokens"] == tokens else "short"
        if raw.endswith("data: [DONE]\n\n"):
            return "whole" if raw.count("data: ") >= 3 else "short"
        last = raw.strip().rpartition("\n\n")[2]
        told = last.startswith("data: ") and "error" in json.loads(last.removeprefix("data: "))
        return "told" if told else "cut"

    async def metrics(self) -> dict[str, Counter[str]]:
        """Return the samples by name and replica; gateways' own are those of the replica ""."""
        async with self.http.get(f"{self.url}/metrics") as response:
            text = await response.text()
        found: dict[str, Counter[str]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                replica = sample.labels.get("replica", "")
                found.setdefault(sample.name, Counter())[replica] += sample.value
        return found


async def settle(holds: Callable[[], Any], seconds: float = SECONDS) -> float:
    """Wait until `await holds()` is true; return the seconds that it took."""
    began = time.monotonic()
    while not await holds():
        if time.monotonic() - began > seconds:
            raise AssertionError(f"still not so after {seconds} s")
        await asyncio.sleep(0.2)
    return round(time.monotonic() - began, 1)


# Checks. Each returns its figures.


async def streams(deployed: Client, plain: Client, _: Program) -> dict[str, Any]:
    """Every dialect's stream and answer is that of a plain server."""
    asks = {
        "/v1/chat/completions": body("Name a colour.", stream=True),
        "/v1/completions": {"prompt": "Once", "max_tokens": 12, "temperature": 0},
        "/v1/messages": {
            "messages": [{"role": "user", "content": "Hi"}],
            "max_tokens": 12,
            "stream": True,
            "temperature": 0,
        },
        "/api/generate": {"model": "smollm2-135m", "prompt": "Once", "options": {"num_predict": 9}},
        "/v1/embeddings": {"input": "text"},
        "/nowhere": {},
    }
    same = 0
    for path, content in asks.items():
        if path == "/api/generate":
            content["options"]["temperature"] = 0
        answers = [await each.post(path, content) for each in (deployed, plain)]
        assert answers[0][0] == answers[1][0], (path, answers)
        kinds = [headers["Content-Type"] for _, headers, _ in answers]
        texts = [texts_of(raw) for *_, raw in answers]
        assert kinds[0] == kinds[1] and texts[0] == texts[1], (path, answers)
        same += 1
    return {"same": same}


def texts_of(raw: str) -> list[Any]:
    """Return the texts and the names of events of an answer, without ids and times."""
    kept, text = [], ""
    for line in raw.splitlines():
        data = line.removeprefix("data: ")
        if not data.startswith("{"):
            kept += [line] if line and not line.startswith(":") else []
            continue
        for key, value in walk(json.loads(data)):
            if key in ("content", "text", "response"):
                text += value if isinstance(value, str) else ""
            elif key in ("finish_reason", "stop_reason", "done_reason", "code", "message"):
                kept += [f"{key} {value}"] if isinstance(value, str) else []
    return [text, Counter(kept)["data: [DONE]"], [each for each in kept if " " in each][-2:]]


def walk(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner
            yield from walk(inner)
    elif isinstance(value, list):
        for each in value:
            yield from walk(each)


async def cancel(deployed: Client, _plain: Client, _: Program) -> dict[str, Any]:
    """Clients that leave free their slots: streams of 2,000 tokens are left at the start."""

    async def leave() -> None:
        content = body("Tell me a long story.", 2000, stream=True)
        url = f"{deployed.url}/v1/chat/completions"
        async with deployed.http.post(url, json=content) as response:
            for _ in range(6):
                await response.content.readline()

    await asyncio.gather(*(leave() for _ in range(2 * SLOTS)))

    async def idle() -> bool:
        found = await deployed.metrics()
        # The gateway answers this request, too.
        return not sum(found["jaxllama_engine_running"].values()) and (
            found["jaxllama_gateway_open"][""] <= 1
        )

    return {"left": 2 * SLOTS, "seconds_until_idle": await settle(idle, 60)}


async def prefixes(deployed: Client, _plain: Client, _: Program) -> dict[str, Any]:
    """The turns of a conversation go to one replica, and conversations to both."""
    homes: dict[int, list[str]] = {}
    hits = (await deployed.metrics())["jaxllama_prefix_hits_total"]
    for turn in range(4):
        for number in range(6):
            messages = [{"role": "system", "content": SYSTEM.format(number)}]
            for past in range(turn + 1):
                messages.append({"role": "user", "content": f"Question {past}?"})
                if past < turn:
                    messages.append({"role": "assistant", "content": f"Answer {past}."})
            before = (await deployed.metrics())["jaxllama_requests_total"]
            await deployed.post("/v1/chat/completions", {"messages": messages, "max_tokens": 2})
            after = (await deployed.metrics())["jaxllama_requests_total"]
            homes.setdefault(number, []).append(*[(after - before).most_common(1)[0][0]])
    same = sum(each == turns[0] for turns in homes.values() for each in turns[1:])
    used = len({turns[0] for turns in homes.values()})
    assert same == 18, homes
    hits = (await deployed.metrics())["jaxllama_prefix_hits_total"] - hits
    return {"turns": 18, "at_home": same, "replicas": used, "prefix_hits": sum(hits.values())}


async def kill(deployed: Client, _plain: Client, server: Program) -> dict[str, Any]:
    """A replica is killed under load: whole answers all come, its streams are told."""
    ends: Counter[str] = Counter()
    others: Counter[str] = Counter()
    stop = asyncio.Event()
    before = await deployed.metrics()

    async def ask(number: int) -> None:
        count = 0
        while not stop.is_set():
            count += 1
            stream = number % 3 > 0
            how = await deployed.chat(f"{number} {count}: a story", 48, stream=stream)
            (ends if stream else others)[how] += 1

    clients = [asyncio.create_task(ask(number)) for number in range(2 * SLOTS)]
    await asyncio.sleep(6)
    victim = server.replicas()[0]
    os.kill(victim, signal.SIGKILL)
    began = time.monotonic()
    await asyncio.sleep(6)

    async def both() -> bool:
        return len(server.replicas()) == 2 and victim not in server.replicas()

    await settle(both)
    with_others = await served_by_both(deployed)
    restart = round(time.monotonic() - began, 1)
    stop.set()
    await asyncio.gather(*clients)
    after = await deployed.metrics()
    counted = {
        name: (after[f"jaxllama_gateway_{name}_total"] - before[f"jaxllama_gateway_{name}_total"])[
            ""
        ]
        for name in ("retried", "lost")
    }
    assert set(others) == {"whole"}, (others, ends)
    assert set(ends) <= {"whole", "told"}, ends
    assert ends["told"] == counted["lost"], (ends, counted)
    return {
        "streams": dict(ends),
        "whole_answers": dict(others),
        **counted,
        "two_again_seconds": restart,
        "replicas": with_others,
    }


async def served_by_both(deployed: Client) -> int:
    """Wait until two replicas answer; return their number."""

    async def two() -> bool:
        return len((await deployed.metrics()).get("jaxllama_engine_running", ())) == 2

    await settle(two)
    return 2


async def backpressure(deployed: Client, _plain: Client, _: Program) -> dict[str, Any]:
    """More requests than slots and queues hold are refused with 429 and Retry-After."""
    many = 6 * 2 * (SLOTS + QUEUE)
    ends = Counter(await asyncio.gather(*(deployed.chat(f"{n}", 24) for n in range(many))))
    assert set(ends) == {"whole", "refused"}, ends
    assert ends["whole"] >= 2 * QUEUE, ends  # a burst may come before the slots are taken
    return {"requests": many, **ends}


async def redeploy(deployed: Client, _plain: Client, server: Program) -> dict[str, Any]:
    """Deploying again with one replica, then with two: what Ray replaces finishes its streams."""
    asking = [
        asyncio.create_task(deployed.chat(f"{n}: a tale", 150, stream=True)) for n in range(6)
    ]
    await asyncio.sleep(3)
    await asyncio.to_thread(resize, server, 1)
    ends = Counter(await asyncio.gather(*asking))

    async def one() -> bool:
        return len(server.replicas()) == 1

    seconds = await settle(one)
    assert set(ends) == {"whole"}, ends
    assert await deployed.chat("still there?", 4) == "whole"
    await asyncio.to_thread(resize, server, 2)
    await served_by_both(deployed)
    return {**ends, "one_left_seconds": seconds}


def resize(server: Program, replicas: int) -> None:
    """Deploy the same application with another number of replicas, as an operator would."""
    address = server.log.read_text().partition("using the Ray cluster at ")[2].split()[0]
    code = (
        "import ray; from ray import serve; from jaxllama.deploy.application import *\n"
        "from jaxllama.service.bounds import Bounds\n"
        f"ray.init(address={address!r})\n"
        f"settings = Settings(port={server.port}, bounds=Bounds(queue_requests={QUEUE}))\n"
        f"plan = Plan(settings, {{'slots': {SLOTS}}}, {replicas}, {replicas}, 1.0, 0.0)\n"
        "serve.run(application(plan), name=NAME, route_prefix='/')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"RAY_AUTH_MODE": "token"},  # as a cluster has that `deploy` starts
        check=False,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr[-1500:]


async def overhead(deployed: Client, plain: Client, server: Program) -> dict[str, Any]:
    """What the way over Ray costs: milliseconds of a request, CPU time of a streamed token."""
    figures: dict[str, Any] = {}
    for _ in range(3):
        for each in (deployed, plain):
            await each.chat("warm up", 8, stream=True)
    times: dict[str, list[float]] = {"health": [], "one_token": [], "plain_health": []}
    times["plain_one_token"] = []
    for count in range(40):
        for name, each in (("", deployed), ("plain_", plain)):
            began = time.perf_counter()
            async with each.http.get(f"{each.url}/health") as response:
                await response.read()
            times[f"{name}health"].append(time.perf_counter() - began)
            if count % 2:
                began = time.perf_counter()
                assert await each.chat("Hi", 1) == "whole"
                times[f"{name}one_token"].append(time.perf_counter() - began)
    for name, values in times.items():
        figures[f"{name}_ms"] = round(1000 * median(values), 2)
    tokens, together = 48, 4
    for name, each, found in (("", deployed, server), ("plain_", plain, PLAIN[0])):
        began, cpu = time.perf_counter(), found.cpu()
        ends = await asyncio.gather(
            *(each.chat(f"{n}: a story", tokens, stream=True) for n in range(together))
        )
        assert set(ends) == {"whole"}, ends
        passed = time.perf_counter() - began
        figures[f"{name}tokens_s"] = round(together * tokens / passed, 1)
        figures[f"{name}cpu_ms_per_token"] = round(
            1000 * (found.cpu() - cpu) / together / tokens, 2
        )
    return figures


async def drain(deployed: Client, _plain: Client, server: Program) -> dict[str, Any]:
    """SIGTERM under load: streams finish, new requests are refused, and the exit code is 0."""
    asking = [
        asyncio.create_task(deployed.chat(f"{n}: a tale", 100, stream=True)) for n in range(6)
    ]
    await asyncio.sleep(2)
    server.processes()
    server.process.send_signal(signal.SIGTERM)
    late: Counter[str] = Counter()
    while not all(each.done() for each in asking):
        await asyncio.sleep(0.5)
        late[await deployed.chat("too late?", 4)] += 1
    ends = Counter(await asyncio.gather(*asking))
    code = await asyncio.to_thread(server.process.wait, 120)
    assert set(ends) == {"whole"} and code == 0, (ends, code)
    return {"streams": dict(ends), "exit_code": code, "late": dict(late)}


async def autoscale(deployed: Client, _plain: Client, server: Program) -> dict[str, Any]:
    """One replica becomes two under load, and one again after ten quiet minutes.

    Every answer is whole or refused. The cluster is one of its own, and this takes a quarter of an
    hour: the check is run only when it is named.
    """
    assert len(server.replicas()) == 1
    ends: Counter[str] = Counter()
    has_grown = asyncio.Event()

    async def ask(number: int) -> None:
        while not has_grown.is_set():
            ends[await deployed.chat(f"Tell me about the number {number}.", 48, stream=True)] += 1

    async def are(count: int) -> bool:
        return len(server.replicas()) == count

    asking = [asyncio.create_task(ask(number)) for number in range(SLOTS + QUEUE)]
    started = await settle(partial(are, 2))
    served = await served_by_both(deployed)
    has_grown.set()
    await asyncio.gather(*asking)
    assert set(ends) <= {"whole", "refused"}, ends
    ended = await settle(partial(are, 1), 900)
    assert await deployed.chat("Are you there?") == "whole"
    return {
        "second_replica_after": started,
        "replicas": served,
        "ends": dict(ends),
        "one_replica_after": ended,
    }


PLAIN: list[Program] = []
CHECKS = {
    each.__name__: each
    for each in (
        streams,
        cancel,
        prefixes,
        overhead,
        backpressure,
        kill,
        redeploy,
        drain,
        autoscale,
    )
}
# Checks that need a cluster of their own, with the options of `jaxllama deploy`.
ALONE = {"autoscale": ("--replicas", "1", "--autoscale", "--cpus", "0.5")}


async def run_checks(names: list[str], deployed: Program, plain: Program) -> bool:
    """Run the checks in turn; print the figures of each. Return whether all held."""
    good = True
    limit = aiohttp.ClientTimeout(total=SECONDS)
    many = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=limit, connector=many) as http:
        for name in names:
            began = time.monotonic()
            try:
                figures = await CHECKS[name](
                    Client(deployed.url, http), Client(plain.url, http), deployed
                )
            except Exception as error:
                good, figures = False, {"failed": f"{type(error).__name__}: {str(error)[:1500]}"}
            seconds = round(time.monotonic() - began, 1)
            print(json.dumps({"check": name, **figures, "seconds": seconds}), flush=True)
    return good


def main() -> int:
    names = sys.argv[1:] or [name for name in CHECKS if name not in ALONE]
    unknown = set(names) - set(CHECKS)
    if unknown:
        print(f"unknown checks {sorted(unknown)}; expected some of {', '.join(CHECKS)}")
        return 2
    if len(names) > 1 and ALONE.keys() & names:
        print(f"checks {', '.join(names)}; expected no other beside {', '.join(ALONE)}")
        return 2
    replicas = ALONE.get(names[0], ("--replicas", "2"))
    options = ("--slots", str(SLOTS), "--queue-requests", str(QUEUE))
    with program("serve", *options) as plain:
        plain.wait()
        PLAIN.append(plain)
        with program("deploy", *options, *replicas) as deployed:
            deployed.wait()
            good = asyncio.run(run_checks(names, deployed, plain))
            if not good:
                print(deployed.log.read_text()[-6000:])
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
