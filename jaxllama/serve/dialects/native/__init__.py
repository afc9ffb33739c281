"""jaxllama's own routes: tokens, templates, scores, labels, explanations, plugins, server facts.

A dialect whose errors have OpenAI's form, because clients use it together with that API.
"""

from typing import Any

from jaxllama.errors import JaxLlamaError
from jaxllama.serve.answering.problem import error_body
from jaxllama.serve.dialect import Dialect, DialectOptions
from jaxllama.serve.dialects.native.adapters import (
    ADAPTERS,
    LOAD_ADAPTER,
    UNLOAD_ADAPTER,
    list_adapters,
    load_adapter,
    unload_adapter,
)
from jaxllama.serve.dialects.native.explain import ExplainRoutes
from jaxllama.serve.dialects.native.facts import (
    PROPS,
    SLOTS,
    TOKENIZER_INFO,
    props,
    slots,
    tokenizer_info,
)
from jaxllama.serve.dialects.native.models import (
    LOAD_MODEL,
    UNLOAD_MODEL,
    load_model,
    unload_model,
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
from jaxllama.serve.dialects.native.worker import (
    MODEL_INFO,
    SERVER_INFO,
    model_info,
    server_info,
)
from jaxllama.serve.endpoints import Endpoint, Serves

ENDPOINTS: dict[Endpoint, Serves] = {
    TOKENIZE: tokenize,
    DETOKENIZE: detokenize,
    TEMPLATE: apply_template,
    SCORE: score,
    CLASSIFY: classify,
    PLUGINS: plugins,
    TOKENIZER_INFO: tokenizer_info,
    ADAPTERS: list_adapters,
    LOAD_ADAPTER: load_adapter,
    UNLOAD_ADAPTER: unload_adapter,
    LOAD_MODEL: load_model,
    UNLOAD_MODEL: unload_model,
    PROPS: props,
    SLOTS: slots,
    SERVER_INFO: server_info,
    MODEL_INFO: model_info,
}


class Native(Dialect):
    """Our own routes: tokens, templates, scores, labels, explanations, plugins and facts."""

    name = "native"

    def __init__(self, options: DialectOptions | None = None) -> None:
        """Make the handlers of all routes, with an empty store for recordings of explanations.

        `options` is normally None: no options are defined for these routes.
        """
        super().__init__(options)
        self.endpoints = {**ENDPOINTS, **ExplainRoutes().endpoints}

    def error_body(self, error: JaxLlamaError, /) -> dict[str, Any]:
        """Return the body of an error response."""
        return error_body(error)
