"""The work for a body cut into one-byte chunks is bounded, by count, with both of the parsers."""

import asyncio

import pytest
from aiohttp import StreamReader, web_protocol
from aiohttp.http_parser import HttpRequestParserPy

from jaxllama.serve import decode
from jaxllama.serve.connection import FRAMING, PIECE
from tests.serve.conftest import connect, post, running, scenario

CHUNK = b"1\r\nx\r\n"


@pytest.mark.parametrize("parser", ["C", "Python"])
@pytest.mark.parametrize("path", ["/say", "/health", "/nothing"])
def test_a_mebibyte_in_one_byte_chunks_is_given_up_early(monkeypatch, caplog, parser, path):
    if parser == "Python":
        monkeypatch.setattr(web_protocol, "HttpRequestParser", HttpRequestParserPy)
    chunks = []
    end = StreamReader.end_http_chunk_receiving
    monkeypatch.setattr(
        StreamReader, "end_http_chunk_receiving", lambda self: chunks.append(self) or end(self)
    )

    async def body():
        async with running() as live:
            raw = post(CHUNK * (1 << 20), "Transfer-Encoding: chunked", path=path)
            if path == "/health":
                raw = raw.replace(b"POST", b"GET")
            reader, writer = await connect(live.url)
            writer.write(raw)
            head = await reader.readline()
            assert {"/say": b" 400 ", "/health": b" 200 ", "/nothing": b" 404 "}[path] in head
            await live.until(lambda: not live.server.crowd)
            writer.close()
            assert (await live.say())["texts"] == ["Hello!"]

    scenario(body)
    assert len(chunks) <= (FRAMING + 2 * PIECE) / (len(CHUNK) - 1)
    assert not [each for each in caplog.records if each.exc_info]


@pytest.mark.parametrize("parser", ["C", "Python"])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_large_body_that_waits_to_be_read_is_not_taken_for_chunk_sizes(
    monkeypatch, parser, is_chunked
):
    """The parser pauses while nobody reads; what waits in it is neither content nor framing."""
    if parser == "Python":
        monkeypatch.setattr(web_protocol, "HttpRequestParser", HttpRequestParserPy)

    async def wait(request):
        while not request.protocol._reading_paused:
            await asyncio.sleep(0.001)

    monkeypatch.setattr(decode, "send_continue", wait)
    whole = b'{"n": 0, "prompt": "' + b"a" * 1_900_000 + b'"}'
    pieces = [whole[at : at + PIECE] for at in range(0, len(whole), PIECE)]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(each), each) for each in pieces) + b"0\r\n\r\n"

    async def body():
        async with running() as live:
            raw = post(chunks, "Transfer-Encoding: chunked") if is_chunked else post(whole)
            reader, writer = await connect(live.url)
            writer.write(raw)
            await reader.readuntil(b"\r\n\r\n")
            assert b'"param":"n"' in await reader.readuntil(b"}}")
            writer.close()

    scenario(body)
