"""The work for a body cut into one-byte chunks is bounded, by count, with both of the parsers."""

import pytest
from aiohttp import StreamReader, web_protocol
from aiohttp.http_parser import HttpRequestParserPy

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
