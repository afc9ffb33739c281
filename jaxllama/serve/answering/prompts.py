"""Prompts in the forms that clients send them: a text, token ids, or a list of these."""

from jaxllama.errors import InvalidParameter
from jaxllama.intake import Prompt
from jaxllama.limits import check_count

PromptField = str | list[str | int | list[int]]  # one text, texts, one list of token ids, or lists


def as_prompts(prompt: PromptField, name: str = "prompt", limit: str = "prompts") -> list[Prompt]:
    """Convert one text or list of token ids, or a list of these, to a list of prompts.

    `name` is the request's field, for errors; `limit` is the name of the server's limit on the
    number of prompts. Raises InvalidParameter for a list that is empty, too long or mixes these
    kinds.
    """
    if isinstance(prompt, str):
        return [prompt]
    texts = [each for each in prompt if isinstance(each, str)]
    lists = [each for each in prompt if isinstance(each, list)]
    ids = [each for each in prompt if isinstance(each, int)]
    if ids and len(ids) == len(prompt):
        return [ids]
    if not prompt or len(prompt) not in (len(texts), len(lists)):
        raise InvalidParameter(
            f"{name} is an empty or a mixed list; expected texts, token ids, or lists of token ids",
            name,
        )
    check_count(limit, len(prompt))
    return [*texts, *lists]
