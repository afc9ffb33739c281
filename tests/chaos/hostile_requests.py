"""Hostile requests, as bytes on a connection: requests that no well-behaved client sends.

Each kind is a function of a seeded random generator. No request is expensive by its size: expensive
requests are limited to a few tokens, and the most expensive ones are rare.
"""

import json
import random
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

from tests.chaos.asking import words
from tests.chaos.target import ATTACKER


class Shot(NamedTuple):
    """The bytes of one request; `is_whole` if it is complete, so that the server must answer."""

    raw: bytes
    is_whole: bool = True


JSON_TYPE = "application/json"
SURROGATE = "\ud800"
HALVES = "\ud800\udfff"
CHAT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "Hello", "max_tokens": 2},
    "/v1/chat/completions": CHAT,
    "/v1/responses": {"input": "Hello", "max_output_tokens": 2},
    "/v1/embeddings": {"input": ["Hello"]},
    "/score": {"prompt": "Hello", "continuations": [" one", " two"]},
    "/classify": {"prompt": "Hello", "labels": ["a", "b"]},
    "/explain": {"prompt": "Hello", "max_tokens": 2},
    "/tokenize": {"text": "Hello"},
    "/detokenize": {"tokens": [1, 2]},
    "/apply-template": {"messages": CHAT["messages"]},
}
FIELDS = (
    *("model", "prompt", "messages", "max_tokens", "temperature", "top_p", "top_k", "min_p", "n"),
    *("seed", "stop", "stream", "stream_options", "logprobs", "top_logprobs", "logit_bias"),
    *("best_of", "echo", "suffix", "user", "tools", "tool_choice", "response_format", "regex"),
    *("grammar", "json_schema", "choices", "repetition_penalty", "presence_penalty", "min_tokens"),
    *("stop_ids", "ignore_eos", "negative_prompt", "guidance_scale", "preset", "format"),
    *("input", "continuations", "labels", "tokens", "text", "encoding_format", "dimensions"),
    *("chat_template", "chat_template_kwargs", "what_if", "priority", "metadata", "store"),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 0.5, -0.5, 1e308, -1e308),
    *("", " ", "a", "\0", "\u202e", "<|im_end|>", "<|endoftext|>", "NaN", "01", "1e9", "💥" * 50),
    *([], [[]], [None], [1, "a"], [-1], [2**40], [0.5], [True], {}, {"a": 1}, {"": {}}, [{}]),
    *([""], ["a"] * 40, ["\0"], list(range(300)), {"0": 1}, {"01": 1}, {"-1": 5}, {"a": 5}),
    *({"type": "function"}, {"type": "json_schema"}, {"type": "json_object"}, {"role": "user"}),
    *([{"role": "user"}], [{"role": "nobody", "content": "a"}], [{"role": "tool", "content": []}]),
    *([{"type": "function", "function": {"name": ""}}], {"include_usage": "yes"}),
)
NUMBERS = (
    *("NaN", "Infinity", "-Infinity", "1e400", "-1e400", "1e-400", "-0", "01", "+1", "0x10", "1."),
    *(".5", "1_0", "1e", "٣", "1" * 400, "1" * 5000, "0." + "1" * 400, "1e99999999", "--1", "1,2"),
)
REGEXES = (
    *("(", "a{", "[", "[z-a]", "(?<=a)b", r"\1", "(a+)+b", "(a|a)*", "a{1,100000}", "(.*)*x"),
    *("(" * 2000, "(" * 200 + ")" * 200, "a" * 5000, r"\p{Nope}", "(?P<n>a)(?P=n)", "^$", "\0"),
    *("(a{500}){500}", SURROGATE, "", "*", "a**", "(?", "(?i", "[[:alpha:]", "x{2,1}", "|" * 3000),
)
GRAMMARS = (
    *("", "root", "root ::=", "root ::= root", "root ::= a", "a ::= [a-z]", "root ::= [", "\0"),
    *('root ::= "a', "root ::= " + "(" * 3000, "root ::= [z-a]", "::=", "root ::= root root | [a]"),
    *('root ::= "a"{1,100000}', "root ::= x\nx ::= y\ny ::= x", SURROGATE, "%llguidance {}"),
    *("start: /(/", "root ::= " + '"a" | ' * 500 + '"b"', "// nothing", "root ::= <[99999999]>"),
)
SCHEMAS: tuple[Any, ...] = (
    *({"type": "nope"}, {"type": 5}, {"type": []}, {"$ref": "#"}, {"$ref": "#/nowhere"}),
    *({"$ref": "http://127.0.0.1:1/x"}, {"pattern": "("}, {"type": "string", "pattern": "(a+)+$"}),
    *({"enum": []}, {"const": None}, {"minimum": "a"}, {"multipleOf": 0}, {"maxItems": -1}),
    *({"type": "string", "minLength": 10**9}, {"type": "array", "minItems": 10**9}),
    {"type": "integer", "minimum": 5, "maximum": 1},
    {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    {"allOf": [{"type": "string"}, {"type": "integer"}]},
    {"anyOf": []},
    {"not": {}},
    {"type": "object", "properties": {"": {}, "\0": {}, "a" * 3000: {}}},
    {"type": "object", "patternProperties": {"(": {}}},
    {"type": "object", "required": ["missing"] * 200},
    {"type": "array", "prefixItems": [{"type": "string"}] * 300},
    {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(60)}},
)
SCHEMA_TEXTS = (
    *('{"type": "integer", "minimum": NaN}', '{"maximum": 1e400}', '{"const": "\\ud800"}'),
    *('{"a": 1, "a": 2}', '{"type": "string", "type": "integer"}', "{", "", "null", "[]", '"a"'),
    *('{"enum": [Infinity]}', '{"properties": {"\\udfff": {}}}', "1" * 5000, "{}" * 2, "\ufeff{}"),
)
HEAVY_SCHEMA = {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(1500)}}
TEMPLATES = (
    *("{{ 10 ** 10 ** 10 }}", "{% for i in range(10**9) %}{% endfor %}", "{{ 'x' * 10**10 }}"),
    *("{{ ''.__class__.__mro__ }}", "{% include 'x' %}", "{% for", "{{ nothere }}", "\0", ""),
)
METHODS = (
    *("GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "CONNECT", "BREW", "post"),
    *("POST ", "P\0ST", "G" * 300, ""),
)
PATHS = (
    *("/", "//", "/v1", "/v1/", "/v1/completions/", "//v1/completions", "/v1/../v1/completions"),
    *("/v1/completions%00", "/%2e%2e/etc/passwd", "/../../etc/passwd", "/v1/models/../../x"),
    *("/v1/models/%ff", "/v1/models/" + "a" * 3000, "/v1/requests/x", "/v1/requests/%00", "/nope"),
    *("/v1/completions?key=a&" + "b" * 4000, "*", "http://elsewhere/v1/completions", "/metrics"),
    *(
        "/health",
        "/ready",
        "/openapi.json",
        "/?" + "&" * 2000,
        "/v1/\r\nX: y",
        "/\u00e9",
        "/v1/fi%",
    ),
)
HEADERS = (
    *("Content-Type: text/plain", "Content-Type: multipart/form-data; boundary=x", "Content-Type:"),
    *(
        "Content-Type: application/json; charset=utf-16",
        "Content-Encoding: gzip",
        "X: " + "y" * 9000,
    ),
    *("Content-Encoding: br, gzip, deflate, zstd", "Content-Length: 5", "Content-Length: -1"),
    *("Content-Length: +5", "Content-Length: 1_0", "Content-Length: 99999999999999999999"),
    *("Transfer-Encoding: chunked", "Transfer-Encoding: identity", "Transfer-Encoding: x, chunked"),
    *("Host: a/?x=", "Host:", "Host: evil.example", "Host: 127.0.0.1:99999", "Host: " + "h" * 5000),
    *(
        "Expect: 100-continue",
        "Expect: x",
        "Connection: upgrade\r\nUpgrade: websocket",
        " folded: x",
    ),
    *("Connection: close, close, keep-alive", "No colon here", ": empty", "X\0: y", "X: a\rb"),
    *(
        "X-Request-Id: " + "\u00e9" * 40,
        "X-Request-Id: a\x1b[31mb",
        "Accept: ;;;q=9",
        "Origin: null",
    ),
    *("Cookie: " + "a=b; " * 800, "Range: bytes=-1", "If-Match: *", "Upgrade: h2c", "TE: trailers"),
    *('Forwarded: for="_x', "X-Forwarded-For: 1, 2, 3", "Accept-Encoding: " + "gzip," * 900),
)
KEYS = (
    *("", "Authorization: Bearer", "Authorization: Bearer ", "Authorization: Bearer wrong"),
    *("Authorization: Basic YTpi", "Authorization:", "Authorization: Bearer " + "k" * 6000),
    *("Authorization: bearer\t" + ATTACKER[:-1], "Authorization: Bearer \u00e9\u00ff"),
    *("Authorization: Bearer a\r\nAuthorization: Bearer b", f"X-Api-Key: {ATTACKER}x"),
    f"Authorization: Bearer {ATTACKER}, {ATTACKER}",
)
GARBAGE = (
    *(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET /\r\n", b"\r\n\r\n\r\n", b"\0" * 300),
    *(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1 x\r\n\r\n"),
    *(b"\xff\xfe" * 50, b"A" * 20000, b"GET  /  HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\nHost: a\n\n"),
    *(b"* OK IMAP\r\n", b"{}\r\n", b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n"),
)


def post(
    path: str, body: bytes, *, more: tuple[str, ...] = (), key: str | None = None, **line: str
) -> bytes:
    """Return the bytes of a POST, or of another method or version; text is encoded as UTF-8."""
    auth = f"Authorization: Bearer {ATTACKER}" if key is None else key
    own = [each for each in ("Host: 127.0.0.1", auth, "Connection: close") if each]
    names = {each.split(":")[0].lower() for each in more}
    if not names & {"content-length", "transfer-encoding"}:
        own.append(f"Content-Length: {len(body)}")
    if "content-type" not in names:
        own.append(f"Content-Type: {JSON_TYPE}")
    first = f"{line.get('method', 'POST')} {path} HTTP/{line.get('version', '1.1')}"
    head = "\r\n".join([first, *own, *more]) + "\r\n\r\n"
    return head.encode("utf-8", "surrogatepass") + body


def sent(path: str, body: object) -> Shot:
    """Return a POST with a JSON body; lone surrogates are escaped."""
    return Shot(post(path, json.dumps(body).encode()))


def target_of(chance: random.Random) -> tuple[str, dict[str, Any]]:
    """Choose an endpoint and a valid body for it."""
    path = chance.choice(list(BODIES))
    return path, dict(BODIES[path])


# Kinds.


def wrong_types(chance: random.Random) -> Shot:
    """Return known fields, and fields of other endpoints, with values of any type."""
    path, body = target_of(chance)
    for _ in range(chance.randint(1, 3)):
        own = chance.random() < 0.5
        body[chance.choice(list(body)) if own else chance.choice(FIELDS)] = chance.choice(VALUES)
    return sent(path, body)


def wrong_body(chance: random.Random) -> Shot:
    """Return a body that is no object, or no JSON."""
    texts = (
        "",
        "null",
        "[]",
        "1",
        '"a"',
        "{",
        '{"prompt"',
        "{'a': 1}",
        "\ufeff{}",
        "{}{}",
        "//",
        "{,}",
    )
    return Shot(post(chance.choice(list(BODIES)), chance.choice(texts).encode()))


def deep_nesting(chance: random.Random) -> Shot:
    """Return deeply nested lists or objects."""
    path, body = target_of(chance)
    depth = chance.choice((60, 65, 1000, 100_000))
    left, right = chance.choice((("[", "]"), ('{"a":', "}")))
    nested = left * depth + "1" + right * chance.choice((depth, 0))
    text = json.dumps(body)[:-1] + f', "{chance.choice(FIELDS)}": {nested}}}'
    return Shot(post(path, text.encode()))


def wild_numbers(chance: random.Random) -> Shot:
    """Return numbers that JSON or float64 does not have."""
    path, body = target_of(chance)
    name = chance.choice(FIELDS)
    body.pop(name, None)
    text = json.dumps(body)[:-1] + f', "{name}": {chance.choice(NUMBERS)}}}'
    return Shot(post(path, text.encode()))


def surrogates(chance: random.Random) -> Shot:
    """Return lone surrogates in texts and names."""
    path, body = target_of(chance)
    name = chance.choice(list(body))
    body[name if chance.random() < 0.7 else f"{name}\udc00"] = f"a{chance.choice(HALVES)}b"
    return sent(path, body)


def doubled_keys(chance: random.Random) -> Shot:
    """Return an object with the same name twice."""
    path, body = target_of(chance)
    name = chance.choice(list(body))
    value = json.dumps(chance.choice(VALUES))
    return Shot(post(path, (json.dumps(body)[:-1] + f', "{name}": {value}}}').encode()))


def bad_constraint(chance: random.Random) -> Shot:
    """Return schemas, regexes and grammars that are wrong, empty or expensive."""
    path = chance.choice(("/v1/completions", "/v1/chat/completions"))
    body = BODIES[path] | {"max_tokens": 4}
    kind = chance.choice(("regex", "grammar", "schema", "schema text", "format", "choices"))
    if kind == "regex":
        body["regex"] = chance.choice(REGEXES)
    elif kind == "grammar":
        body["grammar"] = chance.choice(GRAMMARS)
    elif kind == "choices":
        body["choices"] = chance.choice(([], [""], ["a", "a"], [1], ["a" * 3000] * 50, [SURROGATE]))
    elif kind == "schema text":
        body["json_schema"] = chance.choice(SCHEMA_TEXTS)
    else:
        schema = HEAVY_SCHEMA if chance.random() < 0.02 else chance.choice(SCHEMAS)
        named = {"name": "x", "schema": schema}
        wanted = {"type": "json_schema", "json_schema": named}
        body |= {"json_schema": schema} if kind == "schema" else {"response_format": wanted}
    return sent(path, body)


def bad_template(chance: random.Random) -> Shot:
    """Return chat templates and template variables that are wrong or expensive."""
    body = dict(CHAT)
    if chance.random() < 0.5:
        body["chat_template"] = chance.choice(TEMPLATES)
    else:
        name = chance.choice(("tokenize", "messages", "chat_template", "", "a\0"))
        body["chat_template_kwargs"] = {name: chance.choice(VALUES)}
    return sent(chance.choice(("/v1/chat/completions", "/apply-template")), body)


def bad_tools(chance: random.Random) -> Shot:
    """Return tools with invalid names and parameters."""
    names = ("", "\0", "<|im_end|>", "a" * 3000, "a b", SURROGATE, '"', "é", "get_weather")
    parameters = chance.choice((*SCHEMAS, None, [], "a", 5))
    function = {"name": chance.choice(names), "parameters": parameters}
    tools = [{"type": "function", "function": function}] * chance.choice((1, 2, 40))
    forced = {"type": "function", "function": {"name": chance.choice(names)}}
    choice = chance.choice(("auto", "required", "none", forced, "x", 5))
    return sent("/v1/chat/completions", CHAT | {"tools": tools, "tool_choice": choice})


def bad_headers(chance: random.Random) -> Shot:
    """Return headers that are wrong, doubled, folded or huge."""
    path, body = target_of(chance)
    raw = json.dumps(body).encode()
    more = tuple(chance.choices(HEADERS, k=chance.choice((1, 1, 2, 150))))
    packed = zlib.compress(raw) if chance.random() < 0.1 else raw
    return Shot(post(path, packed, more=more), is_whole=False)


def expectations(chance: random.Random) -> Shot:
    """Return Expect headers, also on unknown paths and in HTTP versions without them."""
    path = chance.choice((*BODIES, "/nope", "/health", "/v1/models"))
    more = (chance.choice(("Expect: 100-continue", "Expect: x", "Expect: 100-continue, x")),)
    body = json.dumps(BODIES.get(path, {})).encode()
    line = {"version": chance.choice(("1.0", "1.1")), "method": chance.choice(("POST", "GET"))}
    key = chance.choice((None, ""))
    return Shot(post(path, body, more=more, key=key, **line))


def chunk_tricks(chance: random.Random) -> Shot:
    """Return a body in chunks of one byte, with wrong sizes, extensions, trailers or no end."""
    path, body = target_of(chance)
    raw = json.dumps(body).encode()
    trick = chance.randrange(8)
    whole = b"%x\r\n%s\r\n" % (len(raw), raw)
    chunks = {
        0: b"".join(b"1\r\n%c\r\n" % byte for byte in raw * chance.choice((1, 20))) + b"0\r\n\r\n",
        1: b"-5\r\n" + whole,
        2: b"ffffffffffffffff\r\n" + raw,
        3: b"%x;%s\r\n%s\r\n0\r\n\r\n" % (len(raw), b"e" * 20000, raw),
        4: whole,  # without the last chunk
        5: whole + b"0\r\n" + b"X: y\r\n" * 300 + b"\r\n",
        6: b"%x\r\n%sxx\r\n0\r\n\r\n" % (len(raw), raw),
        7: b"zz\r\n" + whole,
    }[trick]
    return Shot(post(path, chunks, more=("Transfer-Encoding: chunked",)), is_whole=trick != 4)


def over_long(chance: random.Random) -> Shot:
    """Return prompts, bodies and declared lengths above the limits."""
    path, body = target_of(chance)
    declared = chance.choice((2**21 + 1, 2**31, 2**62))
    if chance.random() < 0.3:
        return Shot(post(path, b"{", more=(f"Content-Length: {declared}",)), is_whole=False)
    size = chance.choices((20_000, 100_000, 1_900_000), (20, 8, 1))[0]
    text = words(1, chance.random()) * (size // 6)
    name = chance.choice(list(body))
    body[name] = [text] if isinstance(body[name], list) else text
    return sent(path, body)


def invalid_utf8(chance: random.Random) -> Shot:
    """Return a body that is not UTF-8."""
    path, body = target_of(chance)
    raw = bytearray(json.dumps(body).encode())
    for _ in range(chance.randint(1, 5)):
        raw[chance.randrange(len(raw))] = chance.randrange(128, 256)
    return Shot(post(path, bytes(raw)))


def unknown_routes(chance: random.Random) -> Shot:
    """Return requests with unknown paths and methods."""
    path = chance.choice((*PATHS, *BODIES))
    return Shot(post(path, b"{}", method=chance.choice(("GET", "POST", *METHODS))), is_whole=False)


def wrong_keys(chance: random.Random) -> Shot:
    """Return requests without a key, with a wrong one, or with the right one in a wrong place."""
    path, body = target_of(chance)
    query = f"?api_key={ATTACKER}" if chance.random() < 0.2 else ""
    return Shot(post(path + query, json.dumps(body).encode(), key=chance.choice(KEYS)))


def garbage(chance: random.Random) -> Shot:
    """Return bytes that are no HTTP, or many requests at once."""
    if chance.random() < 0.3:
        return Shot(chance.randbytes(chance.randrange(1, 3000)), is_whole=False)
    if chance.random() < 0.2:
        request = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        return Shot(request * chance.choice((2, 50, 500)), is_whole=False)
    return Shot(chance.choice(GARBAGE), is_whole=False)


KINDS: tuple[tuple[Callable[[random.Random], Shot], int], ...] = (
    (wrong_types, 30),
    (wrong_body, 3),
    (deep_nesting, 4),
    (wild_numbers, 8),
    (surrogates, 5),
    (doubled_keys, 4),
    (bad_constraint, 10),
    (bad_template, 4),
    (bad_tools, 5),
    (bad_headers, 8),
    (expectations, 4),
    (chunk_tricks, 5),
    (over_long, 2),
    (invalid_utf8, 3),
    (unknown_routes, 8),
    (wrong_keys, 5),
    (garbage, 5),
)


def hostile(seed: int, number: int) -> tuple[str, Shot]:
    """Return the kind and the bytes of request `number`; equal arguments give equal bytes."""
    chance = random.Random(f"{seed}, {number}")
    kinds, weights = zip(*KINDS, strict=True)
    kind = chance.choices(kinds, weights)[0]
    return kind.__name__, kind(chance)
