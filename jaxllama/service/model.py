"""What is served: one model, ready to be asked.

Made by whoever composes the server, proven by the service before anybody is told that it is ready.
Must not know queues or HTTP.
"""

import asyncio
import copy
import time
from dataclasses import dataclass, field

from jaxllama.bridge import Emitted, EngineThread
from jaxllama.confined import Confined
from jaxllama.engine.engine import Engine
from jaxllama.errors import EngineStopped, JaxLlamaError
from jaxllama.intake import Intake
from jaxllama.limits import LIMITS
from jaxllama.request import Finished, FinishReason, GenerationRequest


@dataclass(frozen=True)
class Model:
    """What is served."""

    name: str
    engine: Engine
    intake: Intake
    aliases: frozenset[str] = frozenset()  # other names that requests may use
    loaded: float = field(default_factory=time.time)

    @property
    def knobs(self) -> frozenset[str]:
        """Every field of a request that says how to generate."""
        return frozenset((*LIMITS, *self.intake.bank.knobs))


def confine(intake: Intake, seconds: float) -> Intake:
    """The intake, with a chat template - a program that came with the model - locked up."""
    text = intake.tokenizer.text
    if text.template is None:
        return intake
    confined = copy.copy(intake)
    locked = {name: Confined(each, text, seconds=seconds) for name, each in intake.formats.items()}
    locked[intake.format.name].start()  # the others have a process once they are asked for
    confined.formats = dict(locked)
    confined.format = locked[intake.format.name]
    return confined


def release(intake: Intake) -> None:
    """End the processes of an intake's formats and constraints; blocks."""
    for each in intake.formats.values():
        if isinstance(each, Confined):
            each.close()
    intake.constraints.close()


async def make_one_token(thread: EngineThread) -> None:
    """Prove that the engine works, before anybody is told so."""
    done: asyncio.Future[Finished | JaxLlamaError] = asyncio.get_running_loop().create_future()

    def tell(told: Emitted) -> None:
        last = told if isinstance(told, JaxLlamaError) else told[-1]
        if isinstance(last, Finished | JaxLlamaError) and not done.done():
            done.set_result(last)

    thread.submit(GenerationRequest(prompt=(0,), max_tokens=1, temperature=0.0), None, tell)
    end = await done
    if isinstance(end, JaxLlamaError):
        raise end
    if end.reason is not FinishReason.LENGTH:
        raise end.error or EngineStopped(f"the first token ended with {end.reason}")
