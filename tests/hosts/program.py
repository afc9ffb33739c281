"""One host as a program: loads the model of the first argument and answers a few requests.

Host 0 prints the answers as JSON; the others follow it. With JAX_NUM_PROCESSES unset, all devices
are of this one process. The second argument holds the settings of `LLM.load` as JSON, and "ask":
the number of rounds of requests, with a line for each.
"""

import json
import logging
import sys
from typing import Any

from jaxllama import LLM, hosts
from tests.support import QuickPrograms, only

PROMPTS = ["abc", "hello there", "one two three four five six", "x" * 60]


def answers_of(llm: LLM) -> list[Any]:
    """Answers to prompts drawn and greedy, with log-probabilities; a score and an embedding."""
    found: list[Any] = []
    for temperature in (0.0, 0.9):
        for answer in llm.generate(
            PROMPTS * 2, max_tokens=12, temperature=temperature, seed=3, logprobs=2,
            ignore_eos=True,
        ):  # fmt: skip
            drawn = [entry.logprob for entry in answer.logprobs or ()]
            found.append([list(answer.tokens), drawn])
    for name in llm.adapters:
        adapted = llm.generate(PROMPTS, max_tokens=6, temperature=0, lora=name, ignore_eos=True)
        found.append([list(answer.tokens) for answer in adapted])
    found.append([score.logprob for score in llm.score("hello", [" there", " you"])])
    found.append(llm.embed(["hello there"])[0].tolist())
    return found


def main(model: str, settings: dict[str, Any]) -> None:
    rounds = settings.pop("ask", 1)
    group = hosts.join() if hosts.number_in(hosts.COUNT) else None
    with only((), kind=QuickPrograms):
        llm = LLM.load(model, hosts=group, slots=4, context=128, **settings)
    if group is not None and not group.leads:
        llm.follow()
        llm.close()
        return
    for _ in range(rounds):
        print(json.dumps(answers_of(llm)), flush=True)  # noqa: T201
    llm.close()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    main(sys.argv[1], json.loads(sys.argv[2]))
