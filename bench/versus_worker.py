"""One side of `versus.py`: measures decoding and prefill on request, with its own jaxllama.

Reads lines such as "decode 16" or "prefill 512" and prints a rate for each. Runs in checkouts that
are older than this file, so it uses only the Python API and `crowd.py`.
"""

import itertools
import json
import subprocess
import sys
from pathlib import Path

from crowd import decode_rate, prompts_of, random_prompt, seconds_to_first

import jaxllama
from jaxllama import LLM

DEPTH = 64  # tokens of a prompt before decoding
TOKENS = 192  # that each slot decodes: enough that its first call does not count


def main() -> None:
    """Print the commit, then answer each line of the input with a rate."""
    path, arguments = sys.argv[1], json.loads(sys.argv[2])
    print(commit(), flush=True)
    llm: LLM | None = None
    seeds = itertools.count()
    for line in sys.stdin:
        kind, size = line.split()[0], int(line.split()[1])
        if llm is None:
            slots, context = (size, DEPTH + TOKENS) if kind == "decode" else (1, size + 1)
            llm = LLM.load(path, slots=slots, context=context, **arguments)
            finish = getattr(llm.engine.programs, "finish", None)  # newer checkouts compile behind
            if finish is not None:
                finish()
        vocab = llm.config.vocab_size
        if kind == "decode":
            rate = decode_rate(llm.engine, prompts_of(vocab, size, DEPTH), TOKENS)
        else:
            prompt = random_prompt(vocab, size, next(seeds))
            rate = size / seconds_to_first(llm.engine, prompt)
        print(rate, flush=True)


def commit() -> str:
    """Return the checked-out commit of the imported package; its version without git."""
    folder = Path(jaxllama.__file__).parent
    command = ["git", "-C", str(folder), "rev-parse", "--short=12", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return found or str(jaxllama.__version__)
