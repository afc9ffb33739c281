"""Echo: prompts told back before their answers, with log-probabilities if that is asked.

Used by the completions endpoint. Evaluation harnesses score texts this way.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import methodcaller

from jaxllama.errors import InvalidParameter
from jaxllama.intake import Prompt
from jaxllama.limits import check
from jaxllama.request import TokenLogprobs
from jaxllama.serve.dialects.openai.logprobs import OldLogprobs, OldStyle
from jaxllama.service import GenerationService, Model


@dataclass(frozen=True)
class Echo:
    """A prompt that is told back."""

    text: str
    ids: list[int]
    logprobs: OldLogprobs | None


async def echoes_of(
    prompts: Sequence[Prompt], knobs: Mapping[str, object], service: GenerationService
) -> list[Echo]:
    """What is told of each prompt before its answers."""
    asked = check("logprobs", knobs.get("logprobs"))
    if isinstance(asked, int) and asked > 0:
        raise InvalidParameter(
            f"logprobs is {asked}; with echo it must be 0: of a prompt, only its own tokens' "
            f"log-probabilities are known",
            "logprobs",
        )
    return [await echo_of(prompt, service, tells=asked is not None) for prompt in prompts]


async def echo_of(prompt: Prompt, service: GenerationService, *, tells: bool) -> Echo:
    """One prompt told back."""
    tokenizer = service.model.intake.tokenizer

    def read(model: Model) -> tuple[list[int], str]:
        ids = model.intake.ids(prompt)
        model.engine.config.check_length(len(ids), 0)
        return ids, prompt if isinstance(prompt, str) else tokenizer.decode(ids)

    ids, text = await service.off_loop(read)
    if not tells:
        return Echo(text, ids, None)
    values, _ = await service.ask_engine(methodcaller("peek_by_and_by", ids, 1))
    logprobs, writer = OldLogprobs(), OldStyle(tokenizer)
    writer.add(logprobs, ids[0], None)
    for token, value in zip(ids[1:], values.tolist(), strict=True):
        writer.add(logprobs, token, TokenLogprobs(value, value))
    return Echo(text, ids, logprobs)
