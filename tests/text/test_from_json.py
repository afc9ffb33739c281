"""Folders with tokenizer.json: what is read, and what is refused."""

import json
import os
from pathlib import Path

import pytest
import tokenizers
from tokenizers import AddedToken, Regex, decoders, normalizers, processors
from tokenizers.models import BPE, WordPiece
from tokenizers.pre_tokenizers import Metaspace, Split

from jaxllama.errors import BadTokenizer
from jaxllama.text import from_json
from jaxllama.text.from_json import tokenizer_from_json
from jaxllama.text.pretokenize import CUTTINGS
from jaxllama.text.scored import merges_of
from tests.text.vocabularies import CONTROL, golden, tokenizer

BEGIN, TURN_END = CONTROL[0], "<|im_end|>"
SENTENCEPIECE = decoders.Sequence(
    [
        decoders.Replace("\u2581", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
)


def byte_level() -> tokenizers.Tokenizer:
    """As Llama 3's file is made."""
    pairs = [tuple(merge.split(" ")) for merge in golden()["merges"]]
    ids = {token: place for place, token in enumerate(golden()["tokens"])}
    made = tokenizers.Tokenizer(BPE(ids, pairs, ignore_merges=True))
    made.pre_tokenizer = CUTTINGS["llama-bpe"].build()
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(text, normalized=False) for text in CONTROL])
    made.add_tokens(["[INST]", " \n\n"])
    return made


def sentencepiece(prefix: str) -> tokenizers.Tokenizer:
    """As Llama 2's file is made, and its later forms."""
    scores = dict(zip(golden()["pieces"], golden()["scores"], strict=True))
    texts = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *scores]
    ids = {text: place for place, text in enumerate(texts)}
    made = tokenizers.Tokenizer(
        BPE(ids, merges_of(scores), unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    if prefix == "legacy":
        made.normalizer = normalizers.Sequence(
            [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        )
    else:
        made.pre_tokenizer = Metaspace(prepend_scheme=prefix, split=False)
    made.decoder = SENTENCEPIECE
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.add_special_tokens([AddedToken(TURN_END, rstrip=True), AddedToken("<m>", lstrip=True)])
    made.add_tokens([AddedToken("[INST]", normalized=False)])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return made


def save(folder: Path, made: tokenizers.Tokenizer, **files: object) -> Path:
    """Write tokenizer.json and the small files beside it, `_` for the dot of their names."""
    made.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / f"{name}.{'jinja' if name == 'chat_template' else 'json'}").write_text(text)
    return folder


def broken(folder: Path, **changes: object) -> Path:
    """A folder whose tokenizer.json has some parts replaced."""
    whole = json.loads(byte_level().to_str()) | changes
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    return folder


@pytest.mark.parametrize("prefix", ["legacy", "first", "always", "never", "byte-level"])
def test_prompts_have_the_ids_of_the_library(tmp_path, prefix):
    made = byte_level() if prefix == "byte-level" else sentencepiece(prefix)
    ours = tokenizer_from_json(save(tmp_path, made))
    mixed = [f"{text}{TURN_END} \x1c{text}<m>" for text in golden()["texts"][:60]]
    for text in (*golden()["texts"], *mixed):
        made.encode_special_tokens = False
        whole = made.encode(text, add_special_tokens=False)
        assert ours.encode(text, special=True, begin=False) == whole.ids, text
        assert ours.decode(whole.ids) == made.decode(whole.ids)
        made.encode_special_tokens = True
        plain = made.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, begin=False) == plain
        assert ours.encode(ours.guard(text), special=True, begin=False) == plain


def test_the_same_vocabulary_from_json_and_gguf_is_the_same_tokenizer(tmp_path):
    ours = tokenizer_from_json(save(tmp_path, byte_level()))
    for text in golden()["texts"]:
        assert ours.encode(text) == tokenizer("llama-bpe").encode(text)
    assert [ours.piece(token) for token in range(ours.vocab_size)] == [
        tokenizer("llama-bpe").piece(token) for token in range(ours.vocab_size)
    ]


def test_the_configuration_names_begin_and_end(tmp_path):
    said = {"bos_token": {"content": BEGIN}, "eos_token": "<|eot_id|>"}
    ours = tokenizer_from_json(save(tmp_path, byte_level(), tokenizer_config=said))
    assert (ours.text.begin, ours.text.end) == (BEGIN, "<|eot_id|>")
    assert ours.begin_id == len(golden()["tokens"])
    assert [ours.piece(end, special=True) for end in ours.end_ids] == [
        b"<|eot_id|>",
        b"<|im_end|>",
        b"<|endoftext|>",
    ]
    assert ours.text.name == tmp_path.name
    assert ours.text.special == frozenset(CONTROL)


def test_the_special_tokens_map_is_asked_next(tmp_path):
    said = {"bos_token": "<s>", "eos_token": "</s>"}
    ours = tokenizer_from_json(
        save(tmp_path, sentencepiece("legacy"), tokenizer_config={}, special_tokens_map=said)
    )
    assert (ours.begin_id, ours.end_ids[0]) == (1, 2)


def test_a_begin_token_that_is_null_is_none(tmp_path):
    ours = tokenizer_from_json(
        save(
            tmp_path,
            byte_level(),
            tokenizer_config={"bos_token": None},
            config={"bos_token_id": 5},
        )
    )
    assert ours.begin_id is None


def test_model_files_name_ids_where_nothing_else_does(tmp_path):
    ours = tokenizer_from_json(
        save(
            tmp_path,
            sentencepiece("legacy"),
            generation_config={"bos_token_id": 1, "eos_token_id": [2, 40]},
            config={"eos_token_id": 41},
        )
    )
    assert ours.begin_id == 1
    assert ours.end_ids[:3] == (2, 40, 41)


@pytest.mark.parametrize("ends", [[2, 10**9], 10**9, [-1]])
def test_end_ids_past_the_vocabulary_are_refused(tmp_path, ends):
    folder = save(tmp_path, sentencepiece("legacy"), generation_config={"eos_token_id": ends})
    with pytest.raises(
        BadTokenizer,
        match=r"generation_config\.json: eos_token_id names token (10{9}|-1); expected",
    ):
        tokenizer_from_json(folder)


def test_end_ids_of_a_padded_table_have_no_text_and_are_left_out(tmp_path):
    made, padded = sentencepiece("legacy"), 10**4
    said = {
        "generation_config": {"eos_token_id": [2, padded]},
        "config": {"vocab_size": padded + 1},
    }
    assert padded not in tokenizer_from_json(save(tmp_path, made, **said)).end_ids


def test_an_end_token_that_the_model_does_not_have_is_refused(tmp_path):
    said = {"tokenizer_config": {"eos_token": TURN_END}, "config": {"vocab_size": 800}}
    with pytest.raises(BadTokenizer, match=r"'<\|im_end\|>' has id 803; .* tokens 0 to 799"):
        tokenizer_from_json(save(tmp_path, byte_level(), **said))


@pytest.mark.parametrize("token", [5, 801, 900])
def test_an_added_token_with_a_wrong_id_is_refused(tmp_path, token):
    entries = json.loads(byte_level().to_str())["added_tokens"]
    for entry in entries:
        if entry["content"] == TURN_END:
            entry["id"] = token
    words = {
        5: r"tokens '.+' and '<\|im_end\|>' both have id 5;",
        801: r"tokens '<\|eot_id\|>' and '<\|im_end\|>' both have id 801;",
        900: r"added token '<\|im_end\|>' has id 900; expected 803, the next id",
    }
    with pytest.raises(BadTokenizer, match=rf"tokenizer\.json: {words[token]}"):
        tokenizer_from_json(broken(tmp_path, added_tokens=entries))


def test_added_tokens_that_are_no_objects_are_refused_by_name(tmp_path):
    sound = json.loads(byte_level().to_str())
    whole = {"normalizer": {"type": "NFC", "added_tokens": [7]}} | {
        name: part for name, part in sound.items() if name != "normalizer"
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    with pytest.raises(BadTokenizer, match=r"tokenizer\.json cannot be loaded"):
        tokenizer_from_json(tmp_path)


def test_two_pieces_with_one_id_are_refused(tmp_path):
    model = json.loads(byte_level().to_str())["model"]
    model["vocab"]["zebra"] = model["vocab"]["a"]
    with pytest.raises(BadTokenizer, match=r"tokenizer\.json: tokens .*'zebra'.* both have id"):
        tokenizer_from_json(broken(tmp_path, model=model))


@pytest.mark.parametrize(
    ("said", "adds"),
    [({}, True), ({"add_bos_token": False}, False), ({"add_bos_token": None}, True)],
)
def test_the_begin_token_is_added_as_the_files_say(tmp_path, said, adds):
    folder = save(tmp_path, sentencepiece("legacy"), tokenizer_config={"bos_token": "<s>"} | said)
    ours = tokenizer_from_json(folder)
    assert (ours.encode("a")[0] == 1) is adds


def test_without_a_post_processor_no_begin_token_is_added(tmp_path):
    ours = tokenizer_from_json(save(tmp_path, byte_level(), tokenizer_config={"bos_token": BEGIN}))
    assert ours.encode("a")[0] != ours.begin_id


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config": {"chat_template": "T"}},
        {"tokenizer_config": {"chat_template": "old"}, "chat_template": "T"},
        {
            "tokenizer_config": {
                "chat_template": [
                    {"name": "tool_use", "template": "x"},
                    {"name": "default", "template": "T"},
                ]
            }
        },
    ],
)
def test_the_chat_template_is_found_in_all_its_places(tmp_path, files):
    assert tokenizer_from_json(save(tmp_path, byte_level(), **files)).text.template == "T"


def test_a_folder_may_have_no_chat_template(tmp_path):
    assert tokenizer_from_json(save(tmp_path, byte_level())).text.template is None


def test_long_texts_are_not_cut_even_if_the_file_says_so(tmp_path):
    made = byte_level()
    made.enable_truncation(4)
    made.enable_padding(length=64)
    ours = tokenizer_from_json(save(tmp_path, made))
    assert ours.decode(ours.encode("one two three four five")) == "one two three four five"


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(BadTokenizer, match=r"tokenizer\.json is missing"):
        tokenizer_from_json(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"model": {"type": "BPE"}}', "[" * 5000])
def test_a_broken_tokenizer_file_is_refused(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(BadTokenizer, match=r"tokenizer\.json cannot be loaded"):
        tokenizer_from_json(tmp_path)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(b'{"\xff": 1}')
    with pytest.raises(BadTokenizer, match="cannot be read"):
        tokenizer_from_json(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "tokenizer.json")
    with pytest.raises(BadTokenizer, match="no regular file"):
        tokenizer_from_json(tmp_path)


def test_a_file_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(from_json, "MAX_TOKENIZER", 1000)
    with pytest.raises(BadTokenizer, match="more than 1000 bytes"):
        tokenizer_from_json(save(tmp_path, byte_level()))


def test_ids_far_apart_are_refused_before_room_is_made_for_them(tmp_path):
    model = {"type": "BPE", "vocab": {"a": 0, "b": 4_000_000_000}, "merges": []}
    with pytest.raises(BadTokenizer, match="ids up to 4000000000"):
        tokenizer_from_json(broken(tmp_path, model=model, added_tokens=[]))


def test_a_decoder_of_another_kind_is_refused(tmp_path):
    made = tokenizers.Tokenizer(WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    made.decoder = decoders.WordPiece()
    with pytest.raises(BadTokenizer, match="decodes with WordPiece"):
        tokenizer_from_json(save(tmp_path, made))


def test_a_special_token_of_whole_words_is_refused(tmp_path):
    made = byte_level()
    made.add_special_tokens([AddedToken("word", single_word=True)])
    with pytest.raises(BadTokenizer, match="whole word"):
        tokenizer_from_json(save(tmp_path, made))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer_config": "{"}, r"tokenizer_config\.json is no JSON"),
        ({"tokenizer_config": "[1]"}, r"tokenizer_config\.json holds a list"),
        ({"tokenizer_config": "[" * 100_000}, r"tokenizer_config\.json is no JSON"),
        ({"tokenizer_config": {"bos_token": 7}}, "bos_token is 7; expected the text"),
        ({"tokenizer_config": {"chat_template": 7}}, "chat_template is 7"),
        ({"tokenizer_config": {"chat_template": [{"name": "x"}]}}, "called 'default'"),
        ({"generation_config": {"eos_token_id": "2"}}, "eos_token_id is '2'; expected token ids"),
        ({"config": {"eos_token_id": [True]}}, "expected token ids"),
    ],
)
def test_a_broken_side_file_is_refused_by_name(tmp_path, files, message):
    with pytest.raises(BadTokenizer, match=message):
        tokenizer_from_json(save(tmp_path, byte_level(), **files))


def test_a_regular_expression_that_explodes_fails_one_text_only(tmp_path):
    made = byte_level()
    made.pre_tokenizer = Split(Regex("(a+)+$"), "isolated")
    ours = tokenizer_from_json(save(tmp_path, made))
    with pytest.raises(BadTokenizer, match="text cannot be encoded: the tokenizers library"):
        ours.encode("a" * 30 + "!")
    assert ours.encode("ab") == tokenizer("gpt-2").encode("ab")


def test_every_flipped_byte_gives_a_tokenizer_or_an_error(tmp_path):
    whole = bytearray(byte_level().to_str().encode())
    path = tmp_path / "tokenizer.json"
    for place in range(0, len(whole), len(whole) // 60):
        changed = whole.copy()
        changed[place] ^= 1 << (place % 8)
        path.write_bytes(changed)
        try:
            tokenizer_from_json(tmp_path).encode("Hello, world")
        except BadTokenizer:
            continue
