"""Peers that vanish: a network of its own, in which from some moment on nothing comes back.

Run by test_vanish.py inside a fresh network namespace. The peers' address is moved behind a cable
whose other end knows nobody of that name: no FIN, no RST and no acknowledgement ever come, and the
server has to find out by itself.
"""

import asyncio
import subprocess

from tests.serve.conftest import Gate, post, running, scripted

PEER = "10.9.8.7"
NETWORK = f"""
link set lo up
addr add {PEER}/32 dev lo
link add cable type veth peer name nowhere
link set cable up
link set nowhere up
"""
VANISH = f"""
addr del {PEER}/32 dev lo
route add {PEER} dev cable
neigh add {PEER} lladdr 02:00:00:00:00:01 dev cable
"""


def ip(commands: str) -> None:
    subprocess.run(["ip", "-batch", "-"], input=commands, text=True, check=True)


async def main() -> None:
    ip(NETWORK)
    engine = scripted(b"x" * 200)
    async with running(engine, stall_seconds=1.0) as live:
        gate = Gate(engine)
        peers = []
        for stream in (True, False):
            port = int(live.url.rpartition(":")[2])
            peer = await asyncio.open_connection("127.0.0.1", port, local_addr=(PEER, 0))
            peer[1].write(post({"stream": stream}))
            peers.append(peer)
        await gate.advance(lambda: engine.counts["running"] == len(peers))
        await peers[0][0].readuntil(b"\r\n\r\n")  # the stream has begun
        ip(VANISH)
        while live.service._open or engine.slots.claimed:
            gate.let()
            await asyncio.sleep(0.1)  # at this pace the answers would take 20 s
        assert engine.ledger["cancelled"] == len(peers)
        gate.open()
        for _, writer in peers:
            writer.transport.abort()
        await live.say()
        await live.settled()


if __name__ == "__main__":
    asyncio.run(main())
