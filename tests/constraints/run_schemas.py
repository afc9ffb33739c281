"""Hold a model to many random schemas, and every answer that ends by itself to its schema.

Run by hand, as it takes minutes: `python -m tests.constraints.run_schemas`. The default model
answers each schema three times at temperature 1.5, where it would hardly ever write JSON unasked.
Exit code 1 if an answer that ended does not keep to its schema, or one failed.
"""

import datetime
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import click
from jsonschema import FormatChecker
from jsonschema.validators import Draft202012Validator

from jaxllama import LLM, Completion, FinishReason, JaxLlamaError
from jaxllama.intake import Intake
from jaxllama.testing import ByteTokenizer
from jaxllama_formats.plain import Plain
from tests.constraints.schemas import random_schema
from tests.support import ENGINE, MODEL, new_engine

PROMPT = "Here is the record, as JSON:\n"
HEAT = 1.5
CONTEXT = 512


@click.command()
@click.option("--schemas", default=1000, show_default=True)
@click.option("--samples", default=3, show_default=True, help="Answers to each schema.")
@click.option("--max-tokens", default=256, show_default=True)
@click.option("--model", help="Name or path [default: smollm2-135m].")
@click.option("--tiny", is_flag=True, help="Ask a tiny model of bytes with random weights.")
def main(*, schemas: int, samples: int, max_tokens: int, model: str | None, tiny: bool) -> None:
    """Generate all answers, and say how many ended, were cut short, were wrong or failed."""
    asked = [random_schema(random.Random(index)) for index in range(schemas)]
    told: Counter[str] = Counter()
    started, tokens = time.perf_counter(), 0

    def failed(index: int, error: JaxLlamaError) -> None:
        told["failed"] += 1
        click.echo(f"failed: {error}\n{json.dumps(asked[index // samples])}", err=True)

    def items() -> Iterator[tuple[str, dict[str, Any]]]:
        for index in range(schemas * samples):
            yield (
                PROMPT,
                {
                    "json_schema": asked[index // samples],
                    "temperature": HEAT,
                    "seed": index,
                    "max_tokens": max_tokens,
                },
            )

    with tiny_llm() if tiny else LLM.load(model, context=CONTEXT) as llm:
        for index, answer in llm.generate_each(items(), on_error=failed):
            outcome = judged(answer, asked[index // samples])
            told[outcome] += 1
            tokens += len(answer.tokens)
            if outcome == "wrong":
                schema = json.dumps(asked[index // samples])
                click.echo(f"wrong: {answer.text!r}\n{schema}", err=True)
            if sum(told.values()) % 100 == 0:
                click.echo(f"{sum(told.values())} answers: {dict(told)}")
    seconds = time.perf_counter() - started
    click.echo(f"{schemas} schemas, {schemas * samples} answers: {dict(told)}")
    click.echo(f"{tokens} tokens in {seconds:.0f} s")
    sys.exit(1 if told["wrong"] or told["failed"] else 0)


def tiny_llm() -> LLM:
    """A model that finds every byte about as likely as any other."""
    config = replace(ENGINE, slots=16, context=CONTEXT)
    engine = new_engine(MODEL, config)
    return LLM(engine, Intake(ByteTokenizer(), Plain(), engine.bank, config), config=MODEL)


def judged(answer: Completion, schema: dict[str, Any]) -> str:
    """What became of one answer."""
    if answer.finish_reason is not FinishReason.END_TOKEN:
        return "cut short"
    try:
        value = json.loads(answer.text)
    except ValueError:
        return "wrong"
    validator = Draft202012Validator(schema, format_checker=formats())
    return "valid" if validator.is_valid(value) else "wrong"


def formats() -> FormatChecker:
    """Formats as their RFCs have them: a date may lie in the year 0, which Python does not know."""
    checker = FormatChecker(["uuid"])

    @checker.checks("date", raises=ValueError)
    def is_date(value: object) -> bool:
        if isinstance(value, str):
            datetime.date.fromisoformat(f"2{value[1:]}" if value.startswith("0000-") else value)
        return True

    return checker


if __name__ == "__main__":
    main()
