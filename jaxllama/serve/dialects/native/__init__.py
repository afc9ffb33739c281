"""jaxllama's own routes: tokens, templates, scores, labels, explanations, plugins, server facts.

A dialect whose errors have OpenAI's form, because clients use it together with that API.
"""

from aiohttp import web

from jaxllama.serve.dialects.native.explain import EXPLAIN, explain
from jaxllama.serve.dialects.native.facts import (
    PROPS,
    SLOTS,
    TOKENIZER_INFO,
    props,
    slots,
    tokenizer_info,
)
from jaxllama.serve.dialects.native.plugins import PLUGINS, plugins
from jaxllama.serve.dialects.native.scores import CLASSIFY, SCORE, classify, score
from jaxllama.serve.dialects.native.tokens import (
    DETOKENIZE,
    TEMPLATE,
    TOKENIZE,
    apply_template,
    detokenize,
    tokenize,
)
from jaxllama.serve.dialects.openai.shapes import error_body
from jaxllama.serve.endpoints import Endpoint, Serves, routes_of
from jaxllama.service import GenerationService

__all__ = ["ENDPOINTS", "error_body", "routes"]

ENDPOINTS: dict[Endpoint, Serves] = {
    TOKENIZE: tokenize,
    DETOKENIZE: detokenize,
    TEMPLATE: apply_template,
    SCORE: score,
    CLASSIFY: classify,
    EXPLAIN: explain,
    PLUGINS: plugins,
    TOKENIZER_INFO: tokenizer_info,
    PROPS: props,
    SLOTS: slots,
}


def routes(service: GenerationService) -> list[web.RouteDef]:
    """Return the routes of all endpoints of this dialect."""
    return routes_of(ENDPOINTS, service)
