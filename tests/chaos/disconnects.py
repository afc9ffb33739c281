"""Disconnects: clients that close their connection at any moment, beside canaries."""

import asyncio
import contextlib
import json
import random
import socket
import struct
from collections import Counter
from typing import Any

from tests.chaos.asking import words
from tests.chaos.beside import attack_beside_canaries
from tests.chaos.report import Report, within
from tests.chaos.target import ATTACKER, Target

AT_ONCE = 24
MOST_SECONDS = 1800.0  # for all disconnects together
LONGEST = 2.0  # longest time in seconds before a client closes its connection
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: a close sends RST at once


async def attack(server: Target, report: Report, *, count: int, seed: int) -> None:
    """Disconnect `count` times; report the canaries and the server's resources."""
    phases, promises, figures = await attack_beside_canaries(
        server,
        lambda: leave_often(server, max(20, count // 40), seed + 1),
        lambda: leave_often(server, count, seed),
    )
    report.promise(
        "disconnects",
        promises | {"all have left": phases.total() == count},
        disconnects=phases.total(),
        phases=dict(phases),
        **figures,
    )


async def leave_often(server: Target, count: int, seed: int) -> Counter[str]:
    """Disconnect `count` times with several clients at once; return the counts by phase."""
    numbers = within(MOST_SECONDS, count)
    phases: Counter[str] = Counter()

    async def leave() -> None:
        for number in numbers:
            phases[await leave_once(server, random.Random(f"{seed}, {number}"))] += 1

    await asyncio.gather(*(leave() for _ in range(AT_ONCE)))
    return phases


async def leave_once(server: Target, chance: random.Random) -> str:
    """Connect, send a request or a part of it, and disconnect; return the phase."""
    phase, sent, stay = plan(chance)
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    except OSError:
        return "refused"
    with contextlib.suppress(OSError):
        writer.write(sent)
        await writer.drain()
        if phase == "half-closed":
            writer.write_eof()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(stay):
                while await reader.read(4096) and phase != "reading":
                    pass
        if chance.random() < 0.5:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return phase


def plan(chance: random.Random) -> tuple[str, bytes, float]:
    """Choose the phase in which a client disconnects, the bytes it sends, and how long it stays."""
    path, body = question(chance)
    raw = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {ATTACKER}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
    ).encode()
    phase = chance.choices(
        ("connected", "head", "body", "half-closed", "reading", "waiting"), (1, 1, 1, 2, 3, 12)
    )[0]
    stay = LONGEST * 10 ** chance.uniform(-3, 0)
    if phase == "connected":
        return phase, b"", stay / 10
    if phase == "head":
        return phase, head[: chance.randrange(1, len(head))], stay / 10
    if phase == "body":
        return phase, head + raw[: chance.randrange(len(raw))], stay / 10
    return phase, head + raw, stay


def question(chance: random.Random) -> tuple[str, dict[str, Any]]:
    """Choose a request of any kind; its prompt is unique or shared by many requests."""
    text = words(chance.choice((4, 40, 400)), chance.choice((0, 1, chance.random())))
    sizes = {"max_tokens": chance.choice((1, 30, 300)), "ignore_eos": True, "seed": 1}
    stream = {"stream": chance.random() < 0.6}
    talk = {"messages": [{"role": "user", "content": text}]}
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("/v1/completions", {"prompt": text, **sizes, **stream}),
        ("/v1/completions", {"prompt": [text, "Hello"], "n": 2, **sizes, **stream}),
        ("/v1/completions", {"prompt": text, "regex": "[a-z ]{200}", **sizes, **stream}),
        ("/v1/chat/completions", {**talk, **sizes, **stream}),
        ("/v1/chat/completions", {**talk, **sizes, **stream, "logprobs": True}),
        ("/score", {"prompt": text, "continuations": [" one", " two"]}),
        ("/v1/embeddings", {"input": [text]}),
        ("/tokenize", {"text": text}),
    ]
    return chance.choices(kinds, (6, 2, 2, 4, 2, 1, 1, 1))[0]
