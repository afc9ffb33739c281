"""Encoder: a sentence-embedding model that turns texts into vectors; loading, and the Python API.

Used by `jaxllama.Encoder` and by the service. Puts a folder's tokenizer, prompts and network
together. Knows no queue and no HTTP.

    with Encoder.load("minilm") as encoder:
        vectors = encoder.encode(["A cat sleeps.", "The kitten naps."])
        print(vectors[0] @ vectors[1])
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxllama.config import EncoderConfig
from jaxllama.engine.encoding import TextEncoder
from jaxllama.engine.executables import PROGRAMS, Executables
from jaxllama.engine.probes import InSteps, finish
from jaxllama.engine.program_key import program_key
from jaxllama.errors import GenerationFailed, InvalidParameter, PromptTooLong
from jaxllama.limits import FRONT, check_number_or_text
from jaxllama.model.bert import encoder_shapes
from jaxllama.model.params import nest
from jaxllama.startup import Progress
from jaxllama.text.sentences import SentenceTokenizer, sentence_tokenizer
from jaxllama.weights.sentence_transformers import SentenceFolder, SentencePrompts
from jaxllama.weights.store import cache_folder, resolve

logger = logging.getLogger(__name__)

Text = str | Sequence[int]

DEFAULT = "minilm"
SHORTEST = 1e-12  # a vector is scaled to length 1 by at least this length


class Encoder:
    """One encoder, ready to turn texts into vectors."""

    def __init__(
        self,
        texts: TextEncoder,
        tokenizer: SentenceTokenizer,
        prompts: SentencePrompts,
        *,
        path: Path | None = None,
    ) -> None:
        self.texts = texts
        self.tokenizer = tokenizer
        self.path = path
        self._prompts = prompts

    @classmethod
    def load(
        cls,
        model: str | Path = DEFAULT,
        *,
        compile_cache: bool = True,
        progress: Progress | None = None,
    ) -> Self:
        """Load a sentence-transformers model; download it first if needed.

        model          a folder, "hf:owner/name" (a model on Hugging Face) or "minilm"
        compile_cache  keep compiled programs on disk for the next start
        progress       called with (what, done, total) while loading
        """
        report = progress or (lambda *_: None)
        path = resolve(model, progress=progress, encoder=True)
        mesh = jax.make_mesh(
            (1, 1), ("data", "model"), (AxisType.Auto,) * 2, devices=jax.devices()[:1]
        )
        place = NamedSharding(mesh, PartitionSpec())
        started = time.perf_counter()
        with SentenceFolder.open(path) as folder:
            config = folder.config
            tokenizer = sentence_tokenizer(folder.encoder_path, lowercases=folder.lowercases)
            tokenizer.check_size(config.vocab_size, folder.encoder_path)
            weights = folder.read_weights(
                encoder_shapes(config),
                lambda array: jax.device_put(array, place),
                lambda done, total: report("weights", done, total),
            )
            prompts = folder.prompts
        logger.info("weights of %s in %.2f s", config.name, time.perf_counter() - started)
        executables = Executables(cache_folder() / PROGRAMS, key_of(config))
        kept = executables if compile_cache else None
        texts = TextEncoder(config, nest(weights), mesh, executables=kept)
        texts.warm_up(progress)
        return cls(texts, tokenizer, prompts, path=path)

    @property
    def config(self) -> EncoderConfig:
        """The shape of the model."""
        return self.texts.config

    @property
    def prompts(self) -> Mapping[str, str]:
        """The prompts of the model, by name."""
        return self._prompts.texts

    def encode(
        self,
        text: Text | Sequence[Text],
        *,
        prompt_name: str | None = None,
        truncate: bool = False,
        dimensions: int | None = None,
    ) -> np.ndarray:
        """Return the vector of a text (or token ids), or [texts, width] for a list of texts.

        prompt_name  name of one of the model's prompts, put before every text (default: the
                     model's default prompt, if it has one)
        truncate     cut texts that are too long, instead of refusing them
        dimensions   keep only the first so many numbers of each vector, scaled to length 1
                     (default: all numbers)
        """
        is_single = isinstance(text, str) or (len(text) > 0 and isinstance(text[0], int))
        texts = [cast(Text, text)] if is_single else cast(Sequence[Text], text)
        ids = [self.ids(each, prompt_name=prompt_name, truncate=truncate) for each in texts]
        found = self.finished(finish(self.encode_in_steps(ids)), dimensions)
        return found[0] if is_single else found

    def ids(
        self, text: Text, *, prompt_name: str | None = None, truncate: bool = False
    ) -> list[int]:
        """Return the token ids that the model reads for a text, special tokens included.

        `prompt_name`: the model's prompt that is put before a text, but not before token ids; None:
        the default one. `truncate`: cut a text that is too long; else it raises PromptTooLong.
        """
        room = self.config.max_length - self.tokenizer.special_count
        if isinstance(text, str):
            check_number_or_text("input", text, FRONT["sentence"])
            ids = self.tokenizer.encode(self._prompt(prompt_name) + text)
        else:
            ids = self._checked(text)
        if len(ids) > room and not truncate:
            raise PromptTooLong(
                f"input has {len(ids)} tokens; {self.config.name} reads at most {room} of one text "
                f"(send less text, or set truncate to true)"
            )
        return self.tokenizer.wrap(ids[:room])

    def encode_in_steps(self, texts: Sequence[Sequence[int]]) -> InSteps[np.ndarray]:
        """Compute the vectors of texts, given as token ids from `ids`.

        A generator: after each piece of the work it yields how many tokens this piece finished,
        which may be 0; at the end it returns the vectors [texts, width].
        """
        return self.texts.encode_in_steps(texts)

    def finished(self, vectors: np.ndarray, dimensions: int | None = None) -> np.ndarray:
        """Return vectors cut to their first `dimensions` numbers and scaled to length 1.

        `dimensions` None: vectors are returned unchanged. Raises InvalidParameter if `dimensions`
        is out of range, GenerationFailed if a vector has NaN or infinity.
        """
        if not np.isfinite(vectors).all():
            raise GenerationFailed("the encoder produced NaN or infinity for this text")
        width = vectors.shape[-1]
        if dimensions is None or dimensions == width:
            return vectors
        if not 1 <= dimensions < width:
            raise InvalidParameter(
                f"dimensions is {dimensions}; vectors of {self.config.name} have {width} numbers",
                "dimensions",
            )
        cut = vectors[..., :dimensions]
        return cut / np.maximum(np.linalg.norm(cut, axis=-1, keepdims=True), SHORTEST)

    def close(self) -> None:
        """Free the device memory."""
        self.texts.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _prompt(self, name: str | None) -> str:
        """Return the text of the prompt called `name`.

        None: the default prompt of the model, "" if it has none. Raises InvalidParameter for an
        unknown name.
        """
        chosen = self._prompts.default if name is None else name
        if chosen is None:
            return ""
        if chosen not in self.prompts:
            named = ", ".join(map(repr, self.prompts)) or "none"
            raise InvalidParameter(
                f"prompt_name is {chosen[:100]!r}; {self.config.name} has these prompts: {named}",
                "prompt_name",
            )
        return self.prompts[chosen]

    def _checked(self, ids: Sequence[int]) -> list[int]:
        """Return the token ids as a list.

        Raises InvalidParameter if there are none, or if one is not in the vocabulary.
        """
        size = self.config.vocab_size
        wrong: Any = next((token for token in ids if not 0 <= token < size), None)
        if not ids or wrong is not None:
            why = "holds no token" if wrong is None else f"holds token {wrong}"
            raise InvalidParameter(f"input {why}; expected ids from 0 to {size - 1}", "input")
        return list(ids)


def key_of(config: EncoderConfig) -> str:
    """Return the key under which a model's compiled programs are kept on disk.

    `config.name` does not change the key.
    """
    return program_key(("encoder", replace(config, name="")))
