"""`/openapi.json`: the OpenAPI description of all endpoints.

Made from the same data that the handlers use: the endpoints' types, the limits table, the knobs of
the installed samplers. Knows no dialect; each dialect provides its table of endpoints.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import msgspec

from jaxllama.limits import FRONT, LIMITS, Limit
from jaxllama.sampling import KnobSpec
from jaxllama.serve.aliases import aliases_of
from jaxllama.serve.answering.problem import ErrorBody
from jaxllama.serve.endpoints import Endpoint, RequestShape
from jaxllama.serve.model_choice import QUERY, Uses
from jaxllama.serve.wire import SSE
from jaxllama.service import Model

Json = dict[str, Any]

PREFIX = "#/components/schemas/"
REFUSALS = {
    400: "the request is wrong; the message says what is",
    401: "a key is needed",
    403: "this host is not the server's",
    404: "there is no such thing",
    408: "the request came too slowly",
    409: "the request was cancelled",
    413: "the body is too large",
    415: "the body is not plain JSON",
    422: "a field of the request is missing or wrong",
    426: "the route is a WebSocket",
    429: "too many requests wait; try again after the time in Retry-After",
    500: "the server failed",
    501: "the server was started without what this needs",
    503: "no request is taken now; try again after the time in Retry-After",
    504: "the request took too long",
    507: "the server's disk does not take what is to be stored",
}
NO: dict[str, Json] = {  # type of an unsupported field -> schema of the accepted values
    "boolean": {"enum": [False, None]},
    "integer": {"enum": [0, None]},
    "string": {"enum": ["", None]},
    "array": {"enum": [[], None]},
}

INFO: Json = {"title": "jaxllama", "version": version("jaxllama")}
TEXT: Json = {"type": "string"}
EVENT: Json = {  # before OpenAPI 3.2 the schema of an event stream describes each event
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
}


@dataclass(frozen=True)
class RouteName:
    """The name of an endpoint's operation, its dialect, and the type of the dialect's errors."""

    operation: str
    dialect: str
    error: Any  # str: plain text


def describe(
    model: Model,
    endpoints: Mapping[Endpoint, RouteName],
    *,
    needs_key: bool,
    strict: bool,
    names: Sequence[str] = (),
) -> Json:
    """Build the OpenAPI document of the endpoints.

    `model` is a served model. If the server has several, `names` are all names by which requests
    can choose one of them. `needs_key`: the server has API keys; `strict`: it refuses unknown
    fields.
    """
    shapes = [each for each in shapes_of(endpoints) if each not in (None, str)]
    schemas, components = msgspec.json.schema_components(shapes, ref_template=PREFIX + "{name}")
    found = dict(zip(map(id, shapes), schemas, strict=True))
    for endpoint in endpoints:
        if endpoint.body is not None:
            name = found[id(endpoint.body)]["$ref"].removeprefix(PREFIX)
            complete_schema(components[name], endpoint, model, strict=strict)
            if names and "model" in endpoint.model_fields:
                components[name]["properties"]["model"] = model_schema(names)
    if not strict:
        for each in components.values():
            each.pop("additionalProperties", None)
    paths: Json = {}
    refusals: Json = {}
    for endpoint, name in endpoints.items():
        described = describe_operation(endpoint, name, found)
        refusals |= describe_refusals(name, found)
        described |= describe_parameters(endpoint, names)
        methods = paths.setdefault(endpoint.plain_path, {})
        method = endpoint.method.lower()
        if method in methods:
            described = join(methods[method], described, refusals)
        methods[method] = described
    document: Json = {
        "openapi": "3.1.0",
        "info": INFO,
        "paths": paths,
        "components": {"schemas": components, "responses": refusals},
    }
    if needs_key:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def outline(endpoints: Mapping[Endpoint, RouteName]) -> Json:
    """Build an OpenAPI document with the names of all operations, without bodies and answers."""
    paths: Json = {}
    for endpoint, name in endpoints.items():
        methods = paths.setdefault(endpoint.plain_path, {})
        method = endpoint.method.lower()
        named = {"operationId": name.operation, "summary": endpoint.summary, "tags": [name.dialect]}
        if method in methods:
            named = {**methods[method], "summary": join_summaries(methods[method], named)}
        methods[method] = named
    return {"openapi": "3.1.0", "info": INFO, "paths": paths}


def only(endpoints: Mapping[Endpoint, RouteName], operation: str) -> Mapping[Endpoint, RouteName]:
    """Return those endpoints that have the path and method of the operation named `operation`.

    Two HTTP APIs can have the same path and method. Returns {} if no operation has this name.
    """
    paths = {
        (each.path, each.method) for each, name in endpoints.items() if name.operation == operation
    }
    return {each: name for each, name in endpoints.items() if (each.path, each.method) in paths}


def join_summaries(one: Json, other: Json) -> str:
    """Join the summaries of two operations, of two HTTP APIs, that have the same path.

    `one` and `other` are the OpenAPI descriptions of the operations.
    """
    return f"{one['summary']}; or, told by the body: {other['summary']}"


def join(one: Json, other: Json, refusals: Json) -> Json:
    """Merge the descriptions of two APIs' operations that have the same path and method.

    The merged operation accepts the request bodies of both and has the responses of both.
    `refusals` has the error responses of both, by their names in the document's components.
    """
    bodies = [each["requestBody"]["content"]["application/json"]["schema"] for each in (one, other)]
    answer = {"description": "the answer"}
    contents = [each["responses"]["200"]["content"] for each in (one, other)]
    merged = {kind: part for content in contents for kind, part in content.items()}
    joined = {**one, "summary": join_summaries(one, other)}
    joined["requestBody"] = {
        "required": True,
        "content": {"application/json": {"schema": {"anyOf": bodies}}},
    }
    joined["responses"] = {"200": {**answer, "content": merged}}
    for status, why in REFUSALS.items():
        keys = [each["responses"][str(status)]["$ref"].rpartition("/")[2] for each in (one, other)]
        content = {kind: part for key in keys for kind, part in refusals[key]["content"].items()}
        joined["responses"][str(status)] = {"description": why, "content": content}
    return joined


def shapes_of(endpoints: Mapping[Endpoint, RouteName]) -> Iterable[Any]:
    """Yield the types of all request bodies, responses, events and errors; some are None."""
    for endpoint, name in endpoints.items():
        yield from (endpoint.body, endpoint.answer, *endpoint.events)
        yield from (*endpoint.otherwise.values(), name.error)


def describe_operation(endpoint: Endpoint, name: RouteName, found: Mapping[int, Json]) -> Json:
    """Describe one route as an OpenAPI operation.

    `name` has the operation's name and its dialect. `found` maps `id(type)` of each type to its
    schema.
    """
    content: Json = {}
    if endpoint.answer is not None:
        content |= content_of(endpoint.answer, found)
    if endpoint.framing is SSE and endpoint.events:
        content["text/event-stream"] = {"schema": EVENT}
    elif endpoint.framing is not SSE:
        kind = endpoint.framing.content_type.partition(";")[0]
        content[kind] = {"schema": found[id(endpoint.events[0])] if endpoint.events else TEXT}
    answers: Json = {"200": {"description": "the answer", "content": content}}
    for status in REFUSALS:
        answers[str(status)] = {"$ref": f"#/components/responses/{refusal_key(name, status)}"}
    for status, shape in endpoint.otherwise.items():
        answers[str(status)] = {
            "description": "the answer, which is no",
            "content": {"application/json": {"schema": found[id(shape)]}},
        }
    described: Json = {
        "operationId": name.operation,
        "summary": endpoint.summary,
        "tags": [name.dialect],
        "responses": answers,
    }
    if endpoint.is_open:
        described["security"] = []
    if endpoint.events:  # schemas of the events' data
        described["x-events"] = [found[id(event)] for event in endpoint.events]
    if endpoint.body is not None:
        schema = {"application/json": {"schema": found[id(endpoint.body)]}}
        described["requestBody"] = {"required": True, "content": schema}
    return described


def content_of(shape: Any, found: Mapping[int, Json]) -> Json:
    """Describe, for OpenAPI, a body of type `shape`: JSON, or plain text for str.

    `found` maps `id(type)` of each type to its schema.
    """
    if shape is str:
        return {"text/plain": {"schema": TEXT}}
    return {"application/json": {"schema": found[id(shape)]}}


def refusal_key(name: RouteName, status: int) -> str:
    """Return the name, in the document's components, of an API's error response with a status.

    `name` says which API it is.
    """
    return str(status) if name.error is ErrorBody else f"{name.dialect}-{status}"


def describe_refusals(name: RouteName, found: Mapping[int, Json]) -> Json:
    """Describe the error responses of an HTTP API, by their names in the document's components.

    `name` says which API it is. `found` maps `id(type)` of each type to its schema.
    """
    content = content_of(name.error, found)
    return {
        refusal_key(name, status): {"description": why, "content": content}
        for status, why in REFUSALS.items()
    }


def path_parameter(name: str) -> Json:
    """Describe the variable part of a path, named `name`, as an OpenAPI parameter."""
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def describe_parameters(endpoint: Endpoint, names: Sequence[str]) -> Json:
    """Describe an operation's parameters: the variable part of the path, and `model` in the query.

    `names` are the names of the models if the server has several, else empty. Returns {} if the
    operation has no parameters.
    """
    found = [path_parameter(endpoint.name)] if endpoint.name else []
    if names and endpoint.uses is not Uses.NOTHING and not endpoint.model_fields:
        found.append(query_parameter(names))
    return {"parameters": found} if found else {}


def query_parameter(names: Sequence[str]) -> Json:
    """Describe the query parameter `model`, which chooses one of several models, for OpenAPI.

    `names` are the names of the models.
    """
    return {"name": QUERY, "in": "query", "required": False, "schema": model_schema(names)}


def model_schema(names: Sequence[str]) -> Json:
    """Return the JSON schema of a field that names a model; null means the default one."""
    return {"enum": [*names, None], "default": None}


def complete_schema(schema: Json, endpoint: Endpoint, model: Model, *, strict: bool) -> None:
    """Complete the schema of a request body: add bounds, unsupported fields, knobs and aliases.

    Changes `schema`, the schema of the body of `endpoint`, in place. `model` has the names of the
    model and the knobs, which are the parameters of its samplers. `strict`: the server refuses
    unknown fields.
    """
    fields = schema["properties"]
    assert endpoint.body is not None
    if "model" in fields:
        encoder = model.encoder if endpoint.takes_encoder else None
        names = [model.name, *sorted(model.aliases), *sorted(encoder.names if encoder else ())]
        fields["model"] = model_schema(names)
    for name, field in fields.items():
        if name in endpoint.body.unsupported:
            fields[name] = schema_of_unsupported(field, endpoint.body, name)
        elif name in endpoint.body.unheeded:
            field["description"] = f"of no effect: {endpoint.body.unheeded[name]}"
        elif name in FRONT:
            add_bounds(field, FRONT[name])
    if endpoint.takes_knobs:
        add_knobs(fields, endpoint, model)
    add_aliases(fields, strict=strict)


def add_knobs(fields: Json, endpoint: Endpoint, model: Model) -> None:
    """Add the fields that every generation request may have, and the samplers' knobs, to `fields`.

    `fields` are the properties of the schema of a request body, by name; they are changed in place.
    `endpoint` has the body's own bounds, `model` the samplers.
    """
    for name, limit in (LIMITS | dict(endpoint.bounds)).items():
        fields.setdefault(name, or_null(schema_of_limit(limit), limit.help))
    for name, spec in model.intake.bank.knobs.items():
        fields.setdefault(name, or_null(schema_of_knob(spec), spec.help))


def add_aliases(fields: Json, *, strict: bool) -> None:
    """List the aliases of each field in the field's description, in place.

    An alias is another API's name for a field. `fields` maps the names of a body's fields to their
    schemas. `strict`: the server refuses unknown fields, so each alias is also added as a field.
    """
    known = list(fields)
    for own in known:
        names = aliases_of(own, known)
        if not names:
            continue
        words = fields[own].get("description", "")
        fields[own] |= {"description": f"{words} (also {', '.join(names)})", "x-aliases": names}
        if strict:
            same = {"description": f"the same as {own}"}
            fields |= {name: {**fields[own], **same} for name in names}


def schema_of_unsupported(field: Json, body: type[RequestShape], name: str) -> Json:
    """Return the schema of an unsupported field: it accepts only false, 0 and empty values.

    `field` is its schema as the type `body` declares it; `name` is its name.
    """
    types = {each.get("type") for each in field.get("anyOf", [field])}
    kind = next((kind for kind in NO if kind in types), None)
    no = NO[kind] if kind else {"enum": [None, False, 0, "", [], {}]}
    return {**no, "description": f"not supported: {body.unsupported[name]}", "default": None}


def add_bounds(field: Json, limit: Limit) -> None:
    """Write a limit's help text and bounds into the schema of a request field, in place."""
    field["description"] = limit.help
    for each in field.get("anyOf", [field]):
        match each.get("type"):
            case "integer" | "number":
                each |= {"minimum": limit.low, "maximum": limit.high}
            case "array":
                each["maxItems"] = limit.most
            case "object":
                each["maxProperties"] = limit.most
            case "string" if not limit.many:
                each["maxLength"] = limit.longest


def schema_of_limit(limit: Limit) -> Json:
    """Return the JSON schema of a request field that no sampler defines; `limit` has its bounds."""
    one = schema_of_scalar(limit.kind, limit.low, limit.high)
    if limit.kind is str:
        one |= {"minLength": 1, "maxLength": limit.longest}
    if limit.words:
        return {"anyOf": [one, {"enum": list(limit.words)}]}
    if not limit.many:
        return one
    return {"anyOf": [one, {"type": "array", "items": one, "maxItems": limit.most}]}


def schema_of_knob(spec: KnobSpec) -> Json:
    """Return the JSON schema of a knob: a parameter of a sampler, as a field of a request."""
    if spec.text is not None:
        return {"type": "string", "minLength": 1, "maxLength": spec.text.longest}
    one = schema_of_scalar(spec.kind, spec.low, spec.high)
    if spec.by_token:
        keys = {"pattern": "^(0|[1-9][0-9]{0,9})$"}
        return {
            "type": "object",
            "propertyNames": keys,
            "additionalProperties": one,
            "maxProperties": spec.width,
        }
    if spec.phrases:
        one = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "integer"}}]}
    if spec.width is None:
        return one
    return {"type": "array", "items": one, "maxItems": spec.width}


def schema_of_scalar(kind: type, low: float | None, high: float | None) -> Json:
    """Return the JSON schema of a single value; `low` and `high` bound a number, None: no bound."""
    name = {int: "integer", float: "number", bool: "boolean", str: "string"}[kind]
    schema: Json = {"type": name}
    if kind in (int, float):
        bounds = {"minimum": low, "maximum": high}
        schema |= {key: value for key, value in bounds.items() if value is not None}
    return schema


def or_null(schema: Json, help_: str) -> Json:
    """Return a schema that also accepts null, the default, and has the description `help_`."""
    branches = schema.get("anyOf", [schema])
    return {"anyOf": [*branches, {"type": "null"}], "description": help_, "default": None}
