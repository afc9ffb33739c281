"""The side files of a Hugging Face folder: what begins and ends a text, the chat template.

Read by the tokenizer readers of such folders. `tokenizer_config.json` names the tokens that begin
and end a text, `generation_config.json` and `config.json` may name further end tokens. The chat
template is in its own file or in `tokenizer_config.json`. Every value is checked.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from jaxllama.errors import BadTokenizer
from jaxllama.text.files import MAX_SIDE_FILE, read_object, read_text
from jaxllama.text.tokenizer import library_errors, run
from jaxllama.text.vocabulary import Vocabulary

CHAT_TEMPLATE = "chat_template.json"


@dataclass(frozen=True)
class SideFiles:
    """The files of one folder that configure its tokenizer."""

    folder: Path
    files: Mapping[str, Mapping[str, Any]]

    TOKENIZER = "tokenizer_config.json"
    SPECIALS = "special_tokens_map.json"
    GENERATION = "generation_config.json"
    MODEL = "config.json"
    ADDED = "added_tokens.json"

    @classmethod
    def in_folder(cls, folder: Path) -> "SideFiles":
        """Read the files of a folder that configure its tokenizer; an absent one counts as empty.

        These are tokenizer_config.json, config.json and the like.
        """
        names = (cls.TOKENIZER, cls.SPECIALS, cls.GENERATION, cls.MODEL, cls.ADDED, CHAT_TEMPLATE)
        return cls(folder, {name: read_object(folder / name) for name in names})

    def token(self, key: str, vocabulary: Vocabulary) -> int | None:
        """Return the id of `bos_token` or `eos_token` (`key`), from the first file that has it.

        None if no file has the key, if the value is null in tokenizer_config.json or
        special_tokens_map.json, or if the vocabulary lacks the token's text.
        """
        for name in (self.TOKENIZER, self.SPECIALS):
            if key not in self.files[name]:
                continue
            value = self.files[name][key]
            text = value.get("content") if isinstance(value, dict) else value
            if text is None:
                return None
            if not isinstance(text, str):
                raise BadTokenizer(
                    f"{self.folder / name}: {key} is {value!r:.60}; expected the text of a token"
                )
            return vocabulary.texts.index(text) if text in vocabulary.texts else None
        for name in (self.GENERATION, self.MODEL):
            for token in self.ids(name, f"{key}_id", vocabulary):
                return token
        return None

    def names_token(self, key: str) -> bool:
        """Say whether a file states the token for `key`, or states that there is none.

        `key` is `bos_token` or `eos_token`.
        """
        return any(key in self.files[name] for name in (self.TOKENIZER, self.SPECIALS)) or any(
            self.files[name].get(f"{key}_id") is not None for name in (self.GENERATION, self.MODEL)
        )

    def more_ends(self, vocabulary: Vocabulary) -> Iterator[int]:
        """Yield the ids of all end tokens in generation_config.json and config.json."""
        for name in (self.GENERATION, self.MODEL):
            yield from self.ids(name, "eos_token_id", vocabulary)

    @property
    def model_size(self) -> int | None:
        """Return the vocabulary size of the model in config.json; None if it is not given."""
        size = self.files[self.MODEL].get("vocab_size")
        return size if isinstance(size, int) and not isinstance(size, bool) else None

    def check_end(self, end: int | None, vocabulary: Vocabulary) -> None:
        """Raise BadTokenizer if `end`, the id of the end token, is too large for the model.

        `vocabulary` has the token's text for the error; nothing is checked if `end` is None.
        """
        size = self.model_size
        if end is not None and size is not None and end >= size:
            raise BadTokenizer(
                f"{self.folder}: end token {vocabulary.texts[end]!r:.60} has id "
                f"{end}; by {self.MODEL} the model has tokens 0 to {size - 1}, so that no answer "
                f"could end with it (use the tokenizer of the same model)"
            )

    def ids(self, name: str, key: str, vocabulary: Vocabulary) -> list[int]:
        """Return the token ids in field `key` of the file `name`; the field has one id or a list.

        Raise BadTokenizer for an id that the model does not have. Omit ids that the model has but
        `vocabulary` lacks: they only pad the embedding table and have no text.
        """
        size = max(len(vocabulary), self.model_size or 0)
        value = self.files[name].get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        for token in ids:
            if isinstance(token, bool) or not isinstance(token, int):
                raise BadTokenizer(
                    f"{self.folder / name}: {key} is {value!r:.60}; expected token ids"
                )
            if not 0 <= token < size:
                raise BadTokenizer(
                    f"{self.folder / name}: {key} names token {token}; expected ids from 0 to "
                    f"{size - 1}, those of the vocabulary (use the file of the same model)"
                )
        return [token for token in ids if token < len(vocabulary)]

    def adds_begin(self, encoder: tokenizers.Tokenizer, begin: int) -> bool:
        """Say whether prompts start with the begin token, whose id is `begin`.

        `add_bos_token` decides; without it, what the post-processor of `encoder` does.
        """
        value = self.files[self.TOKENIZER].get("add_bos_token")
        if isinstance(value, bool):
            return value
        with library_errors(f"{self.folder}: the post-processor fails"):
            processed = encoder.encode("a", add_special_tokens=True).ids
        return processed[:1] == [begin] and run(encoder, "a")[:1] != [begin]

    def template(self) -> str | None:
        """Return the chat template, from its own file or one of the JSON files; None if absent."""
        own = read_text(self.folder / "chat_template.jinja", MAX_SIDE_FILE)
        if own is not None:
            return own
        for name in (self.TOKENIZER, CHAT_TEMPLATE):
            value = self.files[name].get("chat_template")
            if isinstance(value, list):  # several, by name
                value = default_template(value)
            if not isinstance(value, str | None):
                raise BadTokenizer(
                    f"{self.folder / name}: chat_template is {value!r:.60}; expected text, or a "
                    f"list with one called 'default'"
                )
            if value is not None:
                return value
        return None


def default_template(named: list[Any]) -> Any:
    """Return the template called `default` in a list of named templates.

    If none has this name, return the list itself.
    """
    for entry in named:
        if isinstance(entry, dict) and entry.get("name") == "default":
            return entry.get("template")
    return named
