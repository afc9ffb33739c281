"""jaxllama: a Llama engine compiled by XLA, whose samplers and prompt formats are plugins.

The floors (groups of modules), bottom up; imports go down only (ARCHITECTURE.md has the details):

    0  errors config shapes limits request registry      types that all floors share
    1  sampling formats                                   the sockets plugin authors read
       kernels/ model/ sharding text/ weights/            maths, text, files
    2  engine/                                            slots, state, programs: token ids only
    3  bridge intake service                              the engine's thread; checked requests
    4  llm completion serve/                              composition root and Python API; HTTP
    5  cli/ testing/                                      everything else
"""

from typing import TYPE_CHECKING

from jaxllama.completion import Classification, Completion, Delta, Hypothesis, Perplexity, Score
from jaxllama.config import EngineConfig, ModelConfig, Rope
from jaxllama.errors import JaxLlamaError
from jaxllama.formats import Message, PromptFormat
from jaxllama.mistakes import hiding
from jaxllama.request import FinishReason, TokenLogprobs, Usage

if TYPE_CHECKING:
    from jaxllama.llm import LLM

__all__ = [
    "LLM",
    "Classification",
    "Completion",
    "Delta",
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


def __getattr__(name: str) -> object:
    """Import LLM at its first use: it imports JAX, which takes most of a second."""
    if name == "LLM":
        try:
            from jaxllama.llm import LLM  # noqa: PLC0415
        except (ImportError, AttributeError) as error:
            hidden = hiding(error)
            if hidden is None:
                raise
            raise hidden from error
        return LLM
    raise AttributeError(f"module 'jaxllama' has no attribute {name!r}")
