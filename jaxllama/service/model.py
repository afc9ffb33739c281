"""The served model: name, engine and intake; and the encoder served beside it, if there is one.

Made by the code that composes the server. The intake checks requests and converts their prompts to
tokens (`jaxllama/intake.py`). The service tests the model with one token before it reports ready.
Must not know queues or HTTP.
"""

import asyncio
import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from jaxllama.bridge import Emitted, EngineThread
from jaxllama.config import ModelConfig
from jaxllama.confined import Confined
from jaxllama.encoder import Encoder
from jaxllama.engine.adapters import AdapterWeights
from jaxllama.engine.engine import Engine
from jaxllama.errors import ConfigError, EngineStopped, JaxLlamaError
from jaxllama.intake import Intake
from jaxllama.limits import LIMITS
from jaxllama.request import Finished, FinishReason, GenerationRequest


@dataclass(frozen=True)
class ServedEncoder:
    """A loaded encoder and its name."""

    name: str
    encoder: Encoder
    aliases: frozenset[str] = frozenset()  # other names that requests may use
    loaded: float = field(default_factory=time.time)

    @property
    def names(self) -> frozenset[str]:
        """All names by which requests may ask for the encoder."""
        return self.aliases | {self.name}


@dataclass(frozen=True)
class Model:
    """A loaded model: its name, its engine, and its intake, which checks and tokenizes requests."""

    name: str
    engine: Engine
    intake: Intake
    aliases: frozenset[str] = frozenset()  # other names that requests may use
    loaded: float = field(default_factory=time.time)
    encoder: ServedEncoder | None = None
    read_adapter: Callable[[Path], AdapterWeights] | None = None  # from a folder, for this model

    def __post_init__(self) -> None:
        if self.encoder is not None and self.encoder.name in (self.name, *self.aliases):
            raise ConfigError(
                f"model and embedding model are both named {self.encoder.name!r}; requests could "
                f"not tell them apart (rename one of the files)"
            )

    @property
    def shape(self) -> ModelConfig:
        """The model's configuration: the sizes of the network."""
        return self.engine.programs.model

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights in memory."""
        return self.engine.programs.weight_bytes

    @property
    def names(self) -> frozenset[str]:
        """All names by which requests may ask for the model without an adapter."""
        return self.aliases | {self.name}

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the loaded LoRA adapters."""
        return () if self.engine.adapters is None else self.engine.adapters.names

    @property
    def knobs(self) -> frozenset[str]:
        """Names of all request fields that control generation: core fields and sampler knobs."""
        return frozenset((*LIMITS, *self.intake.bank.knobs))


def confine(intake: Intake, seconds: float) -> Intake:
    """Return a copy of `intake` that renders conversations in separate processes.

    An intake checks and tokenizes requests. A process is killed if rendering a conversation takes
    more than `seconds`. Without a chat template, `intake` itself is returned.
    """
    text = intake.tokenizer.text
    if text.template is None:
        return intake
    confined = copy.copy(intake)
    locked = {name: Confined(each, text, seconds=seconds) for name, each in intake.formats.items()}
    locked[intake.format.name].start()  # the other formats start their process at first use
    confined.formats = dict(locked)
    confined.format = locked[intake.format.name]
    return confined


def release(intake: Intake) -> None:
    """End the processes of an intake's prompt formats and constraints; wait for their end.

    An intake checks and tokenizes requests.
    """
    for each in intake.formats.values():
        if isinstance(each, Confined):
            each.close()
    intake.constraints.close()


def close_engine(models: list[Model]) -> None:
    """Close the engine of the only model in the list, and empty the list.

    A thread keeps the arguments of its last call for a moment; the model must not be among them, so
    that its memory can be collected as soon as this returns.
    """
    models.pop().engine.close()


async def make_one_token(thread: EngineThread) -> None:
    """Generate one token to prove that the engine works; raise the error if it does not.

    `thread` runs the engine.
    """
    done: asyncio.Future[Finished | JaxLlamaError] = asyncio.get_running_loop().create_future()

    def receive(update: Emitted) -> None:
        last = update if isinstance(update, JaxLlamaError) else update[-1]
        if isinstance(last, Finished | JaxLlamaError) and not done.done():
            done.set_result(last)

    thread.submit(GenerationRequest(prompt=(0,), max_tokens=1, temperature=0.0), None, receive)
    end = await done
    if isinstance(end, JaxLlamaError):
        raise end
    if end.reason is not FinishReason.LENGTH:
        raise end.error or EngineStopped(f"the first token ended with {end.reason}")
