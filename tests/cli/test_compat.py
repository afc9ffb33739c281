"""`jaxllama compat`: command lines of the origin systems, with our commands."""

import contextlib
import math
import shlex
from pathlib import Path
from types import SimpleNamespace

import click
import pytest

from jaxllama.cli import options
from jaxllama.cli.compat import OriginCommand, given_flags
from jaxllama.cli.main import main
from jaxllama.cli.origins import ORIGINS, rllama
from jaxllama.cli.origins.flags import TheirValues
from jaxllama.testing import flatten, random_params, tiny
from jaxllama.testing.models import TINY
from tests.weights.writers import write_gguf


@pytest.fixture
def printed(run):
    """Return our words for a command line of another system, which is not run."""

    def translated(line):
        result = run("compat", "--print", *shlex.split(line))
        assert result.exit_code == 0, result.stderr
        return shlex.split(result.stdout)[1:]

    return translated


LLAMA = "rllama --model-path m --tokenizer-path t"
LINES = [
    (
        f"{LLAMA} --prompt hi --top-k 5",
        "generate --model=m --top-k=5 --echo --prompt=hi",
    ),
    (f"{LLAMA} --prompt hi", "generate --context=1024 --top-k=20 --show-probabilities=sampled"),
    (f"{LLAMA} --prompt hi -q --temperature 0", "generate --quiet --temperature=1.0"),
    (f"{LLAMA} --prompt hi --f16 --max-threads 3", "generate --dtype=float16 --threads=3"),
    (f"{LLAMA} --prompt hi --repetition-penalty 0.9", "generate --repetition-power=0.9"),
    (f"{LLAMA} --start-interactive", "chat '--stop=### Human:' '--postfix=### Assistant:'"),
    (f"{LLAMA} --start-interactive --interactive-stop a --prompt b", "chat --stop=a --prompt=b"),
    (
        f"{LLAMA} --inference-server --inference-server-port 1 --max-seq-len 9",
        "serve --host=127.0.0.1 --port=1 --dialect-option=rllama.max_seq_len=9 "
        "--dialect-option=rllama.exit_after_one_query=false",
    ),
    (
        f"{LLAMA} --inference-server --inference-server-prompt-cache-size 0",
        "serve --prompt-cache-mib=0",
    ),
    ("rama -m m -t t -p hi -r 0.5 -s 99", "generate --temperature=0.5 --context=99 --prompt=hi"),
    ("rama -m m -t t -o chat -p hi", "chat --format=llama2 --first=hi"),
    (
        "rama -m m -t t -a 0.0.0.0:3000 -l 0.5",
        "serve --host=0.0.0.0 --port=3000 --root-dialect=rama --dialect-option=rama.topp=0.5",
    ),
    (
        "llama2c m.bin -t 0.5 -p 0 -s 7 -i hi",
        "generate --model=m.bin --temperature=0.5 --top-p=1.0 --seed=7 --context=256 --stop-ids=1",
    ),
    ("llama2c m.bin -m chat -y sys -i hi -z t", "chat --system=sys --first=hi --tokenizer=t"),
    ("llama2c m.bin -n 9 -- --slots 4", "generate --context=9 --slots 4"),
    (
        "llama-burn -p hi",
        "generate --model=hf:meta-llama/Llama-3.2-1B-Instruct --max-tokens=50 --seed=42 --chat "
        "--temperature=0.6 --top-p=0.9 --context=128 --prompt=hi",
    ),
    (
        "exllama -d m -un Ann -bf -nnl -temp 0.5 -topk 3 -repps 100",
        "chat --model=m --user-name=Ann --bot-name=Chatbort --bot-first --no-newline "
        "--temperature=0.5 --top-k=3 --top-p=0.65 --top-p-strict=true --repetition-window=100 "
        "--repetition-decay=50 --min-length=4 --max-tokens=256",
    ),
    ("exllama -d m -gs 17.2,24", "chat --mesh=stage=2 --stage-layers=17.2GiB,24GiB"),
    ("exllama -d m -cpe 2 -a 3 -l 9", "chat --rope-scale=2.0 --rope-alpha=3.0 --context=9"),
    ("exllama -m f/m -t t -c f/config.json -ld a", "chat --model=f/m --tokenizer=t --lora=a"),
    ("exllama -d m -lora a/adapter_model.bin", "chat --lora=a"),
    (
        "exllama -d m -lora a/adapter_model.safetensors -loracfg a/adapter_config.json -p p",
        "chat --lora=a --prompt-file=p",
    ),
    (
        "exllama -d m -host localhost:5000 -sd s",
        "serve --host=localhost --port=5000 --dialect-option=exllama.sessions=s",
    ),
]


@pytest.mark.origin(
    "RLLaMA: its command line",
    "Rama: the command lines of its engine and server, and llama2.c's",
    "llama-burn: the command line of its chat",
    "ExLlama: the command lines of its chatbot and web UI",
)
@pytest.mark.parametrize(("theirs", "ours"), LINES)
def test_their_flags_become_our_options(printed, theirs, ours):
    name, *words = shlex.split(ours)
    found = printed(theirs)
    assert found[0] == name and set(words) <= set(found)


@pytest.mark.parametrize("theirs", [theirs for theirs, _ in LINES])
def test_what_they_become_is_a_command_of_ours(printed, theirs):
    name, *words = printed(theirs)
    Path("p").write_text("")
    group = click.Context(main)
    command = main.get_command(group, name)
    context = command.make_context(name, words, parent=group)
    if isinstance(command, options.GenerationCommand):
        knobs = dict(context.params)
        command.check(options.gather(knobs, options.CORE) | options.gather(knobs, options.KNOB))


@pytest.mark.parametrize(
    ("theirs", "words"),
    [
        (f"{LLAMA}", "nothing to do"),
        (f"{LLAMA} --prompt a --prompt-file b", "exclude each other"),
        (f"{LLAMA} --prompt a --param-path x/params.json", "leave --param-path out"),
        (f"{LLAMA} --prompt a --inference-server-port 1", "--inference-server-port has no effect"),
        (f"{LLAMA} --inference-server --top-k 3", "--top-k has no effect"),
        (f"{LLAMA} --prompt a --start-interactive --interactive-system-prompt b", "has no effect"),
        ("rama -m m -t t -a 3000", "expected HOST:PORT"),
        ("rama -m m -t t -a a:1 -p hi", "--prompt has no effect"),
        ("rama -m m -t t -o talk", "expected generate or chat"),
        ("llama2c m -m talk", "expected generate or chat"),
        ("llama2c m -y a", "-y has no effect"),
        ("llama-burn", "Missing option"),
        ("llama-burn -p a --model-version b", "expected one of llama-3-8b-instruct"),
        ("exllama -un a", "no model"),
        ("exllama -d m -beams 3", "expected 1"),
        ("exllama -d m -sd s -temp 1", "--temperature has no effect"),
        ("exllama -d m -loracfg a/adapter_config.json", "--lora_config has no effect"),
        ("exllama -d m -lora a/b.bin", "leave --lora out"),
    ],
)
def test_what_cannot_be_meant_is_refused(run, model, theirs, words):
    result = run("compat", *shlex.split(theirs))
    assert result.exit_code == 2 and words in result.stderr
    assert model.loaded == []


@pytest.mark.origin("RLLaMA: the size of the prompt cache")
def test_a_number_of_kept_prompts_becomes_the_memory_of_so_many_contexts(printed, monkeypatch):
    opened = []

    def opening(path):
        opened.append(path)
        return contextlib.nullcontext(SimpleNamespace(config=TINY))

    monkeypatch.setattr(rllama, "open_checkpoint", opening)
    size = "--inference-server --inference-server-prompt-cache-size"
    (found,) = (
        word
        for word in printed(f"{LLAMA} {size} 50000 --max-seq-len 60 --f16")
        if word.startswith("--prompt-cache-mib=")
    )
    bytes_per_token = 2 * TINY.layers * TINY.kv_heads * TINY.head_dim * 2
    assert found == f"--prompt-cache-mib={math.ceil(50000 * 60 * bytes_per_token / 2**20)}"
    assert opened == ["m"]


REFUSED = [(name, flag) for name, each in ORIGINS.items() for flag in each.flags if flag.instead]
NEEDED = {"rllama": LLAMA, "rama": "rama -m m -t t", "exllama": "exllama -d m"}


@pytest.mark.parametrize(("name", "flag"), REFUSED, ids=lambda each: getattr(each, "key", each))
def test_a_flag_without_a_place_is_refused_with_what_to_do(run, name, flag):
    value = [] if flag.kind is bool else ["1"]
    result = run("compat", *NEEDED[name].split(), flag.names[0], *value)
    assert result.exit_code == 2
    assert f"{flag.names[-1]} has no place here: {flag.instead}"[:70] in result.stderr


@pytest.mark.parametrize("name", ORIGINS)
def test_no_flag_is_accepted_and_ignored(name):
    """Every flag that is not refused is read by some command line."""
    read = set()

    class Watched(dict):
        def __getitem__(self, key):
            read.add(key)
            return super().__getitem__(key)

    origin = ORIGINS[name]
    for theirs, _ in LINES:
        own, *words = shlex.split(theirs)
        if own == name:
            context = OriginCommand(origin).make_context(name, words)
            given = given_flags(context, origin.flags)
            origin.translate(TheirValues(Watched(context.params), given))
    assert {flag.key for flag in origin.flags if flag.instead is None} <= read


def test_our_command_runs_and_is_shown(run, model):
    Path("tokenizer.bin").write_bytes(b"")
    result = run("compat", "llama2c", "m.bin", "-i", "hi", "-n", "99", "-t", "0")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "hiHI\n"
    assert result.stderr.startswith("jaxllama generate --model=m.bin --tokenizer=tokenizer.bin")
    assert model.loaded[0]["context"] == 99


@pytest.mark.parametrize(("asked", "context"), [(20, 20), (0, 64), (256, 64)])
def test_llama2c_asks_for_no_more_than_the_model_has(run, model, asked, context):
    config = tiny(name="m", max_context=64)
    write_gguf(Path("m.bin"), config, flatten(random_params(config)))
    result = run("compat", "llama2c", "m.bin", "-i", "hi", "-n", asked, "-t", "0")
    assert result.exit_code == 0, result.stderr
    assert model.loaded[0]["context"] == context


def test_a_chat_with_names_runs(run, model):
    model.answer = lambda _: b" Yes.\n"
    Path("p.txt").write_text("{bot_name} is kind.\n")
    result = run("compat", "exllama", "-d", "m", "-p", "p.txt", "--", "-n", 20, said="hi\n")
    assert result.stdout == "Chatbort: Yes.\n", result.stderr
    assert model.prompts == ["Chatbort is kind.\nUser: hi\nChatbort:"]


def test_an_error_of_our_command_names_it(run):
    result = run("compat", "llama2c", "m.bin", "--", "--no-such")
    assert result.exit_code == 2 and "generate --help)" in result.stderr
    unknown = run("compat", "llama3c")
    assert unknown.exit_code == 2 and "llama3c" in unknown.stderr
