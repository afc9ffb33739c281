"""The Python API on a tiny random model, from file to text."""

import dataclasses
import re
import threading
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from jaxllama import loading
from jaxllama.config import EngineConfig
from jaxllama.errors import (
    ConfigError,
    InvalidParameter,
    PromptTooLong,
    RequestError,
    UnknownFormat,
)
from jaxllama.formats import Message, ModelText
from jaxllama.intake import Intake
from jaxllama.kernels.cpu import library
from jaxllama.kernels.packed import Packed, dense_of, unpack
from jaxllama.llm import LLM
from jaxllama.loading import (
    check_prompt_folder,
    choose_kernels,
    free_memory,
    named_or_suiting,
    prompt_store_for,
    with_template,
)
from jaxllama.request import FinishReason, choice_seed
from jaxllama.testing import ByteTokenizer, random_params
from jaxllama.text.vocabulary import TokenKind
from jaxllama.weights import open_checkpoint
from jaxllama_formats.chatml import ChatMl
from tests.support import MODEL, new_engine
from tests.weights.writers import flatten, write_gguf, write_hf

ENGINE = EngineConfig(slots=4, context=200, candidates=32, cache_dtype="float32")

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
PIECES = ["<unk>", "<s>", "</s>", *BYTES, *(f"x{i}" for i in range(MODEL.vocab_size - 259))]
TOKENIZER = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": PIECES,
    "tokenizer.ggml.scores": [0.0] * len(PIECES),
    "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * (len(PIECES) - 259)],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.ggml.add_space_prefix": False,
}

pytestmark = pytest.mark.usefixtures("quick_loads")


@pytest.fixture(scope="module")
def llm():
    engine = new_engine(MODEL, ENGINE)
    llm = LLM(engine, Intake(ByteTokenizer(), ChatMl(), engine.bank, ENGINE), config=MODEL)
    yield llm
    llm.intake.constraints.close()


def test_one_prompt_gives_one_completion_and_a_list_a_list(llm):
    one = llm.generate("hello", max_tokens=5, temperature=0)
    many = llm.generate(["hello", "world"], max_tokens=5, temperature=0)
    assert one.tokens == many[0].tokens
    assert len(many) == 2
    assert llm.generate([], max_tokens=5) == []


def test_token_ids_are_a_prompt_too(llm):
    ids = llm.tokenize("hello")
    assert llm.generate(ids, max_tokens=5, temperature=0).tokens == (
        llm.generate("hello", max_tokens=5, temperature=0).tokens
    )


def test_stream_says_what_generate_says(llm):
    whole = llm.generate("abc", max_tokens=20, seed=5)
    stream = llm.stream("abc", max_tokens=20, seed=5)
    deltas = list(stream)
    assert "".join(delta.text for delta in deltas) == whole.text == stream.completion.text
    assert stream.completion.tokens == whole.tokens


def test_two_streams_may_be_read_in_turn(llm):
    one, other = (llm.stream(p, max_tokens=9, temperature=0) for p in ("first", "second"))
    pairs = list(zip(one, other, strict=False))
    assert len(pairs) == 9
    assert one.completion.tokens == llm.generate("first", max_tokens=9, temperature=0).tokens


def test_left_stream_is_cancelled_and_its_slot_free(llm):
    for delta in llm.stream("abc", max_tokens=100):
        assert delta.token is not None
        break
    assert llm.engine.slots.claimed == 0


def test_more_prompts_than_slots_and_queue_room_all_come_back(llm):
    done = []
    prompts = [f"prompt {i}" for i in range(50)]
    answers = llm.generate(prompts, max_tokens=3, on_done=lambda index, _: done.append(index))
    assert len(answers) == 50
    assert sorted(done) == list(range(50))
    assert all(answer is not None for answer in answers)


def test_prompts_are_taken_from_an_iterator_only_as_far_as_needed(llm):
    taken = []

    def prompts():
        for i in range(200):
            taken.append(i)
            yield f"{i}", {"max_tokens": 1}

    found = llm.generate_each(prompts())
    next(found)
    assert len(taken) <= 5 * ENGINE.slots
    found.close()
    assert llm.engine.slots.claimed == 0


def test_seed_is_reported_and_repeats_the_text(llm):
    first = llm.generate("abc", max_tokens=10)
    again = llm.generate("abc", max_tokens=10, seed=first.seed)
    assert again.text == first.text


def test_stop_text_ends_and_is_not_told(llm):
    whole = llm.generate("abc", max_tokens=30, seed=3).text
    stop = whole[4:6]
    cut = llm.generate("abc", max_tokens=30, seed=3, stop=stop)
    assert cut.text == whole[: whole.index(stop)]
    assert (cut.finish_reason, cut.stop) == (FinishReason.STOP_STRING, stop)


def test_logprobs_are_given_when_asked(llm):
    answer = llm.generate("abc", max_tokens=4, temperature=0, logprobs=3)
    assert len(answer.logprobs) == 4
    for token, found in zip(answer.tokens, answer.logprobs, strict=True):
        assert found.top[0] == (token, pytest.approx(found.logprob, abs=1e-5))
        assert len(found.top) == 3
        assert found.top_sampled == ((token, 0.0),)  # greedy: nothing else can be drawn
    assert llm.generate("abc", max_tokens=4).logprobs is None


def test_chat_is_the_rendered_prompt(llm):
    messages = [{"role": "user", "content": "hi"}]
    prompt = ChatMl().render([Message("user", "hi")])
    ids = llm.tokenize(prompt, special=True)
    assert llm.chat(messages, max_tokens=5, temperature=0).tokens == (
        llm.generate(ids, max_tokens=5, temperature=0).tokens
    )
    several = {"n": 2, "best_of": 3, "seed": 4, "max_tokens": 5}
    assert [one.tokens for one in llm.chat(messages, **several)] == [
        one.tokens for one in llm.generate(ids, **several)
    ]
    stream = llm.chat_stream(messages, max_tokens=5, temperature=0)
    assert "".join(delta.text for delta in stream) == stream.completion.text


def test_special_text_inside_a_message_stays_text(llm):
    special = llm.tokenizer.decode([258], special=True)
    plain = llm.intake.chat_ids([{"role": "user", "content": "hi"}])
    hostile = llm.intake.chat_ids([{"role": "user", "content": f"hi{special}"}])
    assert hostile.count(258) == plain.count(258)
    assert len(hostile) == len(plain) + len(special)


def test_score_agrees_with_generated_logprobs(llm):
    answer = llm.generate("abc", max_tokens=4, temperature=0, logprobs=0)
    score = llm.score("abc", [list(answer.tokens)])[0]
    assert score.logprob == pytest.approx(sum(one.logprob for one in answer.logprobs), abs=1e-4)
    assert score.tokens == answer.tokens


def test_texts_become_vectors_of_length_one(llm):
    one = llm.embed("some text")
    assert np.linalg.norm(one) == pytest.approx(1)
    many = llm.embed(["some text", llm.tokenize("some text"), "other"], pooling="last")
    assert np.array_equal(many[0], many[1])
    assert not np.allclose(many[0], one)
    assert not np.allclose(many[0], many[2])


@pytest.mark.parametrize(("text", "pooling"), [("", "mean"), ("abc", "max"), ("x" * 300, "mean")])
def test_what_cannot_be_embedded_is_refused(llm, text, pooling):
    with pytest.raises(RequestError):
        llm.embed(text, pooling=pooling)
    assert llm.engine.slots.claimed == 0


def test_perplexity_is_exp_of_the_mean_surprise(llm):
    text = "some text to be surprised by"
    ids = llm.tokenize(text)
    score = llm.score(ids[:1], [ids[1:]])[0]
    found = llm.perplexity(text)
    assert found.tokens == len(ids) - 1
    assert found.value == pytest.approx(np.exp(-score.logprob / found.tokens), rel=1e-5)


def test_perplexity_goes_on_behind_the_context(llm):
    assert llm.perplexity("x" * 450).tokens == 450 - 3


@pytest.mark.parametrize(
    ("knobs", "word"),
    [
        ({"temperature": -1}, "temperature is -1"),
        ({"top_p": 2}, "top_p is 2"),
        ({"tempratur": 1}, "did you mean 'temperature'"),
        ({"top_q": 1}, "did you mean 'top_"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"seed": "x"}, "seed is 'x'"),
        ({"stop": [""]}, "non-empty"),
        ({"logprobs": 21}, "logprobs is 21"),
        ({"temperature": float("nan")}, "finite"),
        ({"ignore_eos": 1}, "true or false"),
    ],
)
def test_bad_knob_is_refused_and_nothing_runs(llm, knobs, word):
    with pytest.raises(InvalidParameter, match=word):
        llm.generate("abc", **knobs)
    assert llm.engine.idle


@pytest.mark.parametrize("prompt", ["", [1, -1], [1, MODEL.vocab_size], [1, True], [1, 2.0]])
def test_bad_prompt_is_refused(llm, prompt):
    with pytest.raises(RequestError):
        llm.generate(prompt, max_tokens=1)
    assert llm.engine.idle


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (5, r"prompt is 5 \(int\); expected text or a list of token ids"),
        (None, r"prompt is None \(NoneType\)"),
        (b"abc", r"\(bytes\).*prompt.decode\(\)"),
        ({"prompt": "abc"}, r"\(dict\)"),
        (["abc", 5], r"prompt is 5 \(int\)"),
        (["abc", None], r"prompt is None"),
        (["abc", b"abc"], r"\(bytes\)"),
        ([7, "abc"], "prompt holds 'abc'; token ids are whole numbers"),
        ([[7, "abc"]], "prompt holds 'abc'; token ids are whole numbers"),
        (np.arange(3), r"\(ndarray\)"),
    ],
)
def test_a_prompt_of_a_wrong_type_is_refused_in_words(llm, prompt, words):
    for ask in (llm.generate, llm.embed, partial(llm.generate, n=2)):
        with pytest.raises(InvalidParameter, match=words):
            ask(prompt)
        assert llm.engine.slots.claimed == 0
    if not isinstance(prompt, list):
        for ask in (llm.stream, llm.beam_search, partial(llm.score, continuations=["x"])):
            with pytest.raises(InvalidParameter, match=words):
                ask(prompt)


@pytest.mark.parametrize("messages", [5, None, "hi", b"hi", {"role": "user"}, ["hi"], [None]])
def test_a_conversation_of_a_wrong_type_is_refused_in_words(llm, messages):
    for ask in (llm.chat, llm.chat_stream):
        with pytest.raises(InvalidParameter, match=r'expected (a list of )?{"role": "user"'):
            ask(messages)


def test_prompt_that_does_not_fit_is_refused(llm):
    with pytest.raises(PromptTooLong, match="1 to 199"):
        llm.generate("x" * 300)
    with pytest.raises(PromptTooLong, match="lower max_tokens"):
        llm.generate("x" * 100, max_tokens=150)


def test_bad_prompt_in_a_list_leaves_nothing_running(llm):
    with pytest.raises(PromptTooLong):
        llm.generate(["fine", "x" * 300, "fine"], max_tokens=3)
    assert llm.engine.slots.claimed == 0


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1"])
def test_packed_weights_say_what_unpacked_ones_say(tmp_path, kind):
    """The same file loaded both ways; every value of a packed weight is exact."""
    path = tmp_path / "tiny.gguf"
    model = dataclasses.replace(MODEL, width=64, heads=4, kv_heads=2, ffn_width=96, tied=False)
    write_gguf(path, model, flatten(random_params(model)), kind=kind, metadata=TOKENIZER)
    answers = []
    for packed in (True, False):
        with LLM.load(path, slots=2, context=64, packed=packed, kernels="xla") as llm:
            answer = llm.generate("abc", max_tokens=6, temperature=0, logprobs=0)
            answers.append(answer)
    assert answers[0].tokens == answers[1].tokens
    values = [[one.logprob for one in answer.logprobs] for answer in answers]
    assert np.allclose(*values, atol=1e-4)


def test_dtypes_change_little(tmp_path):
    path = tmp_path / "tiny.gguf"
    write_gguf(path, MODEL, flatten(random_params(MODEL)), metadata=TOKENIZER)
    scores = []
    for dtype in ("float32", "bfloat16", "float16"):
        with LLM.load(path, slots=2, context=64, dtype=dtype, cache_dtype=dtype) as llm:
            scores.append(llm.score("abc", ["def"])[0].logprob)
    assert scores[1] == pytest.approx(scores[0], rel=0.05)
    assert scores[2] == pytest.approx(scores[0], rel=0.02)
    assert scores[1] != scores[0]


def test_unpacked_is_exactly_what_unpack_means():
    rng = np.random.default_rng(0)
    scales = rng.random((8, 2), np.float32).astype(np.float16)
    packed = Packed(rng.integers(0, 256, (8, 32), np.uint8), scales, -scales, 4, 32)
    as_jax = dataclasses.replace(
        packed,
        codes=jnp.asarray(packed.codes),
        scales=jnp.asarray(scales),
        minima=jnp.asarray(-scales),
    )
    assert np.array_equal(dense_of(packed), np.asarray(unpack(as_jax)).T)


def test_recommended_sampling_is_what_a_silent_request_gets(tmp_path):
    path = tmp_path / "tiny.gguf"
    advice = {"general.sampling.temp": 0.0}
    write_gguf(path, MODEL, flatten(random_params(MODEL)), metadata=TOKENIZER | advice)
    with LLM.load(path, slots=2, context=64) as llm:
        assert llm.sampling_defaults == {"temperature": 0.0}
        greedy = llm.generate("abc", max_tokens=8, temperature=0)
        silent = [llm.generate("abc", max_tokens=8, seed=seed) for seed in range(3)]
        warm = [llm.generate("abc", max_tokens=8, temperature=5.0, seed=seed) for seed in range(3)]
    assert [answer.tokens for answer in silent] == [greedy.tokens] * 3
    assert any(answer.tokens != greedy.tokens for answer in warm)
    with LLM.load(path, slots=2, context=64, sampling_defaults="none") as llm:
        assert llm.sampling_defaults == {}


def test_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(UnknownFormat):
        LLM.load(tmp_path)


def test_huggingface_folder_without_tokenizer_is_refused(tmp_path):
    write_hf(tmp_path, MODEL, flatten(random_params(MODEL)))
    with pytest.raises(Exception, match=r"tokenizer\.json"):
        LLM.load(tmp_path)


def test_loading_leaves_no_thread_behind(tmp_path):
    before = {thread.name for thread in threading.enumerate()}
    path = tmp_path / "tiny.gguf"
    write_gguf(path, MODEL, flatten(random_params(MODEL)), metadata=TOKENIZER)
    seen = []
    with LLM.load(
        path, slots=2, context=64, progress=lambda *what: seen.append(what), compile_cache=False
    ) as llm:
        assert llm.generate("abc", max_tokens=2).tokens
    assert {what for what, _, _ in seen} >= {"weights", "programs"}
    assert {thread.name for thread in threading.enumerate()} == before


def test_without_a_library_plain_jax_runs_and_says_so(monkeypatch, caplog):
    missing = library.Loaded(None, "no compiler was there")
    monkeypatch.setattr(library, "load", lambda: missing)
    assert choose_kernels("auto", None, MODEL) == "xla"
    assert "slower: no compiler was there" in caplog.text
    with pytest.raises(ConfigError, match="no compiler was there"):
        choose_kernels("cpu", None, MODEL)


@pytest.mark.skipif(not library.available(), reason=library.why_not())
def test_a_mesh_runs_on_kernels_where_it_leaves_them_whole_blocks(caplog):
    wide = dataclasses.replace(MODEL, heads=4, kv_heads=2, head_dim=32, ffn_width=128)
    assert choose_kernels("auto", "data=2,model=2", wide) == "cpu"
    assert choose_kernels("auto", "model=2", dataclasses.replace(wide, ffn_width=96)) == "xla"
    assert "feed-forward 96 wide do not divide over model=2" in caplog.text


@pytest.mark.skipif(not library.available(), reason=library.why_not())
def test_kernels_read_a_file_as_plain_jax_does(tmp_path):
    """The same packed file under both bodies; every kind has its contract in tests/kernels."""
    path = tmp_path / "tiny.gguf"
    shape = {"width": 256, "heads": 4, "kv_heads": 2, "head_dim": 64, "ffn_width": 512}
    model = dataclasses.replace(MODEL, tied=False, **shape)
    write_gguf(path, model, flatten(random_params(model)), kind="Q4_1", metadata=TOKENIZER)
    scores = []
    for body, mesh in (("cpu", None), ("cpu", "model=2"), ("xla", None)):
        settings = {"slots": 2, "context": 64, "kernels": body}
        with LLM.load(path, cache_dtype="float32", mesh=mesh, **settings) as llm:
            scores.append(llm.score("abc", ["some continuation"])[0].token_logprobs)
    one, split, plain = scores
    # A device sees its part of a row: which inputs tower there, so how all are rounded, may differ.
    assert np.allclose(one, split, atol=0.1)
    # Kernels round inputs to 8 bits, and random weights make large logits.
    assert np.abs(np.subtract(one, plain)).max() < 0.3
    assert one != plain


def draft_file(folder, name: str, tokens: list[str] = PIECES, last_kind: int = 1):
    """Write a model with fewer layers than MODEL, for these tokens, the last one of this kind."""
    path = folder / f"{name}.gguf"
    small = dataclasses.replace(MODEL, layers=1, ffn_width=32, vocab_size=len(tokens))
    kinds = [*TOKENIZER["tokenizer.ggml.token_type"][: len(tokens) - 1], last_kind]
    own = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.scores": [0.0] * len(tokens),
    }
    write_gguf(path, small, flatten(random_params(small)), metadata=TOKENIZER | own)
    return path


@pytest.mark.skipif(not library.available(), reason=library.why_not())
def test_a_smaller_model_drafts_and_changes_no_text(tmp_path):
    path = tmp_path / "tiny.gguf"
    write_gguf(path, MODEL, flatten(random_params(MODEL)), metadata=TOKENIZER)
    drafts, settings = draft_file(tmp_path, "small"), {"slots": 2, "context": 200}
    asked = {"max_tokens": 20, "temperature": 0.5, "seed": 3, "n": 2, "speculate": 2}
    with LLM.load(path, draft_model=drafts, **settings) as llm:
        assert llm.engine_config.draft_tokens == loading.DRAFT_TOKENS
        llm.engine.programs.finish()  # the program that is compiled first drafts nothing
        found = llm.generate("once upon a time", **asked)
        assert all(one.usage.drafted for one in found)
    with LLM.load(path, **settings) as llm:
        plain = llm.generate("once upon a time", **{**asked, "speculate": "off"})
    assert [one.tokens for one in found] == [one.tokens for one in plain]


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        ([*PIECES[:-1], "y"], "token 271 is 'x12' in the model and 'y' in the draft model"),
        (PIECES[:-1], "and None in the draft model (they have 272 and 271)"),
    ],
)
def test_a_draft_model_with_other_tokens_is_refused(tmp_path, tokens, words):
    other = draft_file(tmp_path, "other", tokens)
    with pytest.raises(ConfigError, match=re.escape(words)):
        LLM.load(draft_file(tmp_path, "own"), draft_model=other)


def test_unused_tokens_at_the_end_may_differ(tmp_path):
    """Files of one family fill up their tables to different sizes."""
    one = draft_file(tmp_path, "one", [*PIECES[:-1], "[PAD1]"], TokenKind.UNUSED)
    for tokens, kind in ((PIECES[:-1], 1), ([*PIECES[:-1], "[PAD]"], TokenKind.UNUSED)):
        other = draft_file(tmp_path, "other", tokens, kind)
        with open_checkpoint(one) as own, open_checkpoint(other) as draft:
            loading.check_vocabulary(own.tokenizer(), draft)


@pytest.mark.parametrize("settings", [{"kernels": "xla"}, {"mesh": "data=2"}])
def test_a_draft_model_needs_the_kernels_on_one_device(tmp_path, settings):
    path = draft_file(tmp_path, "small")
    with pytest.raises(ConfigError, match="draft_tokens is 4; expected 0 with kernels"):
        LLM.load(path, draft_model=path, **settings)


def test_an_answer_keeps_to_its_form_whoever_else_is_served(llm):
    one_of = {"choices": ["yes", "no"], "seed": 4, "max_tokens": 20}
    alone = llm.generate("good?", **one_of)
    assert alone.text in ("yes", "no")
    assert alone.finish_reason is FinishReason.END_TOKEN
    free = llm.generate("hello", max_tokens=20, seed=1)
    asked = [("hello", {"max_tokens": 20, "seed": 1}), ("good?", one_of)]
    both = dict(llm.generate_each(asked))
    assert both[0].tokens == free.tokens
    assert both[1].tokens == alone.tokens


def test_a_schema_may_be_given_as_values_and_streamed(llm):
    schema = {"type": "object", "properties": {"a": {"const": 7}}, "required": ["a"]}
    knobs = {"json_schema": {**schema, "additionalProperties": False}, "max_tokens": 30}
    text = "".join(delta.text for delta in llm.stream("json:", **knobs))
    assert text == '{"a": 7}'


def test_a_form_that_cannot_be_followed_never_reaches_the_engine(llm):
    accepted = llm.engine.ledger["accepted"]
    with pytest.raises(InvalidParameter, match="regex"):
        llm.generate("x", regex="[")
    assert llm.engine.ledger["accepted"] == accepted


def test_an_answer_cut_short_says_so(llm):
    told = llm.generate("x", regex="[a-z]{30}", max_tokens=5)
    assert told.finish_reason is FinishReason.LENGTH


@pytest.mark.origin("llama-burn: batches whose answers have seeds of their own")
def test_streams_of_one_prompt_have_declared_seeds_and_share_its_computation(llm):
    prompt = "abcdefgh" * 12
    answers = llm.generate(prompt, n=4, seed=7, max_tokens=6)
    assert [one.seed for one in answers] == [choice_seed(7, i) for i in range(4)]
    assert sum(one.usage.reused == 0 for one in answers) <= 1
    for one in answers:
        assert llm.generate(prompt, seed=one.seed, max_tokens=6).tokens == one.tokens
    again = llm.generate([prompt], n=4, seed=7, max_tokens=6)
    assert [one.tokens for one in again[0]] == [one.tokens for one in answers]


def test_best_of_returns_the_likeliest_first(llm):
    every = llm.generate("hello", n=5, seed=3, max_tokens=6, logprobs=0)
    best = llm.generate("hello", n=2, best_of=5, seed=3, max_tokens=6)
    ranked = sorted(every, key=lambda one: -one.mean_logprob)
    assert [one.tokens for one in best] == [one.tokens for one in ranked[:2]]
    assert best[0].logprobs is None


@pytest.mark.parametrize("counts", [{"n": 0}, {"n": 17}, {"n": 3, "best_of": 2}, {"best_of": 99}])
def test_counts_of_answers_are_bounded(llm, counts):
    with pytest.raises(InvalidParameter, match="it must"):
        llm.generate("x", **counts)


def test_streams_keep_to_a_form_each_by_itself(llm):
    answers = llm.generate("x", n=4, choices=["yes", "no", "so"], max_tokens=9, seed=1)
    assert {one.text for one in answers} <= {"yes", "no", "so"}


def test_a_classification_is_what_the_scores_of_the_choices_say(llm):
    found = llm.classify("The soup was cold.", " Was it good?", [" yes", " no", " not at all"])
    scores = llm.score("The soup was cold. Was it good?", [" yes", " no", " not at all"])
    logprobs = [one.logprob for one in scores]
    assert [one.logprob for one in found.scores] == pytest.approx(logprobs, abs=1e-4)
    shares = np.exp(np.array(logprobs) - np.logaddexp.reduce(logprobs))
    assert found.probabilities == pytest.approx(shares, abs=1e-4)
    assert found.choice == found.choices[int(np.argmax(shares))]


def test_length_does_not_count_where_it_is_normalised(llm):
    asked = ("x", " y", [" a", " abc"])
    found = llm.classify(*asked, length_normalize=True)
    means = [one.logprob / len(one.tokens) for one in found.scores]
    assert found.probabilities == pytest.approx(
        np.exp(np.array(means) - np.logaddexp.reduce(means)), abs=1e-5
    )


def test_many_questions_about_one_text_give_what_each_gives(llm):
    questions = [f" Question {i}?" for i in range(30)]
    many = llm.classify("Some text. " * 4, questions, [" yes", " no"])
    for question, one in list(zip(questions, many, strict=True))[::7]:
        alone = llm.classify("Some text. " * 4, question, [" yes", " no"])
        assert one.probabilities == pytest.approx(alone.probabilities, abs=1e-4)


def test_long_and_short_continuations_are_scored_together(llm):
    texts = [" a", " b" * 40, " c", " d" * 50]
    scores = llm.score("start", texts)
    assert [one.tokens for one in scores] == [tuple(llm.tokenize(text)) for text in texts]
    assert scores[1].logprob == pytest.approx(llm.score("start", texts[1:2])[0].logprob, abs=1e-3)


@pytest.mark.parametrize("choices", [[], ["a", "a"], [""]])
def test_choices_that_are_none_are_refused(llm, choices):
    with pytest.raises(InvalidParameter, match="choices"):
        llm.classify("text", "?", choices)


def test_a_template_file_stands_in_for_the_models_own(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    text = with_template(ModelText(template="theirs", begin="<s>"), path)
    assert named_or_suiting(None, text).render([Message("user", "Hi")]) == "[Hi]"
    assert text.begin == "<s>"


def test_a_template_file_that_cannot_be_read_is_said(tmp_path):
    with pytest.raises(InvalidParameter, match=r"none\.jinja cannot be read: .*No such file"):
        with_template(ModelText(), tmp_path / "none.jinja")


def test_guidance_takes_another_prompt_of_which_only_the_answer_is_shared(llm):
    plain, moved, same = (
        llm.generate("hello", max_tokens=12, temperature=0, negative_prompt="other", **more)
        for more in ({"guidance_scale": 1}, {"guidance_scale": 5}, {"guidance_scale": 1.0})
    )
    assert plain.tokens == same.tokens == llm.generate("hello", max_tokens=12, temperature=0).tokens
    assert moved.tokens != plain.tokens
    assert moved.usage.prompt == plain.usage.prompt


def test_negative_prompt_of_a_conversation_is_another_system_message(llm):
    turns = [{"role": "system", "content": "good"}, {"role": "user", "content": "hi"}]
    other = [{"role": "system", "content": "bad"}, *turns[1:]]
    for given in (turns, turns[1:]):
        request, _ = llm.intake.chat(given, {"negative_prompt": "bad", "guidance_scale": 2})
        assert list(request.contrast.prompt) == llm.intake.chat_ids(other)
        assert list(request.prompt) == llm.intake.chat_ids(given)


def test_a_negative_prompt_counts_against_the_context(llm):
    knobs = {"guidance_scale": 2.0, "negative_prompt": "b" * 150}
    request, _ = llm.intake.completion("a", knobs)
    assert request.max_tokens == 50
    with pytest.raises(PromptTooLong, match="prompt has 150 tokens and max_tokens is 60"):
        llm.intake.completion("a", {**knobs, "max_tokens": 60})


def test_guidance_and_a_constraint_hold_together(llm):
    knobs = {"guidance_scale": 3, "negative_prompt": "other", "seed": 2, "max_tokens": 30}
    told = llm.generate("x", regex="[a-c]{4}(forced text){2}", n=3, **knobs)
    assert all(re.fullmatch("[a-c]{4}(forced text){2}", one.text) for one in told)


def test_prompts_last_over_a_restart_in_their_folder_only(tmp_path):
    path, other = tmp_path / "one.gguf", tmp_path / "other.gguf"
    for seed, each in enumerate((path, other)):
        write_gguf(each, MODEL, flatten(random_params(MODEL, seed)), metadata=TOKENIZER)
    folder = tmp_path / "prompts"
    text = "x" * 50
    settings = {"slots": 1, "context": 128, "compile_behind": False}
    reused = []
    for keep in (None, folder, folder):
        with LLM.load(path, prompt_cache_dir=keep, **settings) as llm:
            answer = llm.generate(text, max_tokens=3, temperature=0)
            reused.append(answer.usage.reused)
    assert reused == [0, 0, 49]
    assert {each.stat().st_mode & 0o77 for each in folder.rglob("*")} == {0}
    with LLM.load(other, prompt_cache_dir=folder, **settings) as llm:
        assert llm.generate(text, max_tokens=3).usage.reused == 0


def test_prompt_cache_has_the_bound_that_was_asked_for():
    block = 2 * MODEL.layers * MODEL.kv_heads * MODEL.head_dim * 4 * 128
    assert prompt_store_for(MODEL, ENGINE, 0).most == 0
    assert prompt_store_for(MODEL, ENGINE, 10 * block / (1 << 20)).most == 10
    free = free_memory()
    assert 0.5 < prompt_store_for(MODEL, ENGINE, None).most * block / (free / 8) < 1.5
    with pytest.raises(InvalidParameter, match="prompt_cache_mib is -1"):
        prompt_store_for(MODEL, ENGINE, -1)


@pytest.mark.parametrize(("most", "used", "expected"), [("max", "5", 2048), ("1500", "500", 1000)])
def test_free_memory_is_the_less_of_machine_and_control_group(
    most, used, expected, tmp_path, monkeypatch
):
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:       2 kB\n")
    (tmp_path / "memory.max").write_text(most)
    (tmp_path / "memory.current").write_text(used)
    monkeypatch.setattr(loading, "MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(loading, "GROUP", tmp_path)
    assert free_memory() == expected


def test_a_folder_for_prompts_needs_a_prompt_cache(tmp_path):
    with pytest.raises(InvalidParameter, match="larger prompt_cache_mib"):
        check_prompt_folder(tmp_path, prompt_store_for(MODEL, ENGINE, 0))
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidParameter, match="which is a file"):
        check_prompt_folder(tmp_path / "file", prompt_store_for(MODEL, ENGINE, 10))
