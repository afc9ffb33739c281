"""Builds the tokenizer of a Hugging Face folder, from tokenizer.json or else tokenizer.model.

Called by the weight format and the tokenizer reader of such folders. A tokenizer.model lacks the
tokens that were added to it later: these are in `added_tokens.json` or `tokenizer_config.json`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxllama.errors import BadTokenizer
from jaxllama.text.from_json import MAX_HOLES, tokenizer_from_json
from jaxllama.text.model_file import TOKENIZER_MODEL, model_parts
from jaxllama.text.side_files import SideFiles
from jaxllama.text.specials import Special, Specials
from jaxllama.text.tokenizer import Tokenizer, TokenizerParts, find_end_ids
from jaxllama.text.vocabulary import TokenKind, Vocabulary

TOKENIZER_JSON = "tokenizer.json"
ID_DIGITS = 9  # of a token id that is a key
SPECIAL_KEYS = ("bos_token", "eos_token", "unk_token", "pad_token", "additional_special_tokens")


@dataclass(frozen=True)
class AddedText:
    """A token that the side files add to a vocabulary, or describe further."""

    text: str
    is_control: bool = False  # read only in prompts
    strip_left: bool = False
    strip_right: bool = False


def tokenizer_from_folder(folder: Path) -> Tokenizer:
    """Build the tokenizer of a folder; raise BadTokenizer if that fails."""
    if (folder / TOKENIZER_JSON).exists():
        return tokenizer_from_json(folder)
    path = folder / TOKENIZER_MODEL
    if not path.exists():
        raise BadTokenizer(
            f"{folder} has no tokenizer: expected a {TOKENIZER_JSON} or a {TOKENIZER_MODEL} in it"
        )
    said = SideFiles.in_folder(folder)
    added = read_added(said)
    control = {token for token, each in added.items() if each.is_control}
    parts = with_added(model_parts(path, control), added, path)
    return with_side_files(parts, said).build()


def with_side_files(parts: TokenizerParts, said: SideFiles) -> TokenizerParts:
    """Return a copy of `parts` with begin and end tokens and chat template from the side files.

    `said` has the contents of these files, such as tokenizer_config.json.
    """
    vocabulary, rules, text = parts.vocabulary, parts.rules, parts.text
    begin, own = rules.begin_id, rules.end_ids[:1]
    if said.names_token("bos_token"):
        begin = said.token("bos_token", vocabulary)
    if said.names_token("eos_token"):
        end = said.token("eos_token", vocabulary)
        own = () if end is None else (end,)
    said.check_end(own[0] if own else None, vocabulary)
    adds_begin = said.files[said.TOKENIZER].get("add_bos_token")
    return replace(
        parts,
        rules=replace(
            rules,
            begin_id=begin,
            end_ids=find_end_ids([*own, *said.more_ends(vocabulary)], vocabulary),
            adds_begin=begin is not None and adds_begin is not False,
        ),
        text=replace(
            text,
            template=said.template(),
            begin="" if begin is None else vocabulary.texts[begin],
            end=vocabulary.texts[own[0]] if own else "",
            name=said.folder.name,
            special=frozenset(parts.specials.control),
        ),
    )


def with_added(parts: TokenizerParts, added: Mapping[int, AddedText], path: Path) -> TokenizerParts:
    """Return a copy of `parts` with more tokens, which `added` has by id.

    Raise BadTokenizer, naming `path`, if an id already belongs to another token or a text is added
    twice.
    """
    size = len(parts.vocabulary)
    highest = max(added, default=-1)
    if highest >= size + len(added) + MAX_HOLES:
        raise BadTokenizer(
            f"{path} has {size} tokens and the files beside it add one with id {highest}; expected "
            f"few gaps"
        )
    texts = [*parts.vocabulary.texts, *[""] * (highest + 1 - size)]
    kinds = bytearray(parts.vocabulary.kinds).ljust(len(texts), bytes([TokenKind.UNUSED]))
    control, always = dict(parts.specials.control), dict(parts.specials.always)
    for token, each in added.items():
        if texts[token] not in ("", each.text):
            raise BadTokenizer(
                f"{path}: token {token} is {texts[token][:40]!r}, and a file beside it says "
                f"{each.text[:40]!r}; expected the same (use the files of the same model)"
            )
        texts[token] = each.text
        special = Special(token, each.strip_left, each.strip_right)
        if each.is_control:
            control[each.text] = special
            kinds[token] = TokenKind.CONTROL
        elif token >= size:
            always[each.text] = special
            kinds[token] = TokenKind.USER_DEFINED
    if len(set(filter(None, texts[size:]))) != len(texts[size:]) - texts[size:].count(""):
        raise BadTokenizer(
            f"{path}: the files beside it add one text twice; expected different ones"
        )
    return replace(
        parts,
        vocabulary=Vocabulary(texts, bytes(kinds), parts.vocabulary.spelling),
        specials=Specials(control, always),
    )


def read_added(said: SideFiles) -> dict[int, AddedText]:
    """Return the tokens that the side files of a folder add to the vocabulary, by id.

    `said` has the contents of these files.
    """
    control = frozenset(special_texts(said))
    added: dict[Any, AddedText] = {}
    for text, token in said.files[said.ADDED].items():
        check_token(token, text, said.folder / said.ADDED)
        added[token] = AddedText(text, text in control)
    described = said.files[said.TOKENIZER].get("added_tokens_decoder", {})
    where = said.folder / said.TOKENIZER
    if not isinstance(described, dict):
        raise BadTokenizer(
            f"{where}: added_tokens_decoder is {described!r:.60}; expected an object"
        )
    for key, entry in described.items():
        fields = entry if isinstance(entry, dict) else {}
        token = int(key) if key.isdecimal() and len(key) <= ID_DIGITS else None
        content: Any = fields.get("content")
        check_token(token, content, where)
        added[token] = AddedText(
            content,
            fields.get("special") is True or content in control,
            fields.get("lstrip") is True,
            fields.get("rstrip") is True,
        )
    return added


def special_texts(said: SideFiles) -> Iterator[str]:
    """Yield the texts of special tokens in tokenizer_config.json and special_tokens_map.json."""
    for name in (said.TOKENIZER, said.SPECIALS):
        for key in SPECIAL_KEYS:
            value = said.files[name].get(key)
            for each in value if isinstance(value, list) else [value]:
                text = each.get("content") if isinstance(each, dict) else each
                if isinstance(text, str):
                    yield text


def check_token(token: Any, text: Any, where: Path) -> None:
    """Raise BadTokenizer unless `token` is an id and `text` a text that is not empty.

    `where` is the file that has them.
    """
    is_id = isinstance(token, int) and not isinstance(token, bool) and token >= 0
    if not is_id or not isinstance(text, str) or not text:
        raise BadTokenizer(
            f"{where}: added token {text!r:.60} has id {token!r:.60}; expected a text and an id "
            f"from 0 on"
        )
