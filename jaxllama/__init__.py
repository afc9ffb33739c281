"""jaxllama: a Llama engine compiled by XLA, whose samplers and prompt formats are plugins.

The floors (groups of modules), bottom up; imports go down only (ARCHITECTURE.md has the details):

    0  errors config shapes limits request registry      types that all floors share
    1  sampling formats                                   the sockets plugin authors read
       kernels/ model/ sharding text/ weights/            maths, text, files
    2  engine/                                            slots, state, programs: token ids only
    3  bridge intake encoder service                      the engine's thread; checked requests
    4  llm completion serve/                              composition root and Python API; HTTP
    5  cli/ testing/                                      everything else
"""

from importlib import import_module
from typing import TYPE_CHECKING

from jaxllama.completion import Classification, Completion, Delta, Hypothesis, Perplexity, Score
from jaxllama.config import EngineConfig, ModelConfig, Rope
from jaxllama.errors import JaxLlamaError
from jaxllama.formats import Message, PromptFormat
from jaxllama.mistakes import hiding
from jaxllama.request import FinishReason, TokenLogprobs, Usage

if TYPE_CHECKING:
    from jaxllama.encoder import Encoder
    from jaxllama.llm import LLM

__all__ = [
    "LLM",
    "Classification",
    "Completion",
    "Delta",
    "Encoder",
    "EngineConfig",
    "FinishReason",
    "Hypothesis",
    "JaxLlamaError",
    "Message",
    "ModelConfig",
    "Perplexity",
    "PromptFormat",
    "Rope",
    "Score",
    "TokenLogprobs",
    "Usage",
]


FIRST_USED = {"LLM": "jaxllama.llm", "Encoder": "jaxllama.encoder"}


def __getattr__(name: str) -> object:
    """Import LLM and Encoder at their first use: JAX takes most of a second to import."""
    if name in FIRST_USED:
        try:
            return getattr(import_module(FIRST_USED[name]), name)
        except (ImportError, AttributeError) as error:
            hidden = hiding(error)
            if hidden is None:
                raise
            raise hidden from error
    raise AttributeError(f"module 'jaxllama' has no attribute {name!r}")
