"""Conformance checks of a tokenizer reader, on one file or folder that it opens.

Called by the tests of reader authors and of this project. Uses the public socket only; knows no
reader.
"""

import tempfile
from pathlib import Path

from jaxllama.errors import CheckpointError
from jaxllama.text.reader import TokenizerReader
from jaxllama.text.tail import Tail
from jaxllama.text.tokenizer import Tokenizer

TEXTS = (
    "",
    " ",
    "Hello, world!\n\n  def f(x):\n\treturn x  # 42",
    "naïve e\u0301 東京 한국어 👨‍👩‍👧 \u202b\ufeff\U0010fffd",
    "<s></s><|im_end|><0x0A><unk>",
    "a" * 3000,
)
CUTS = (0.0, 0.1, 0.5, 0.9)  # the fractions of a file that truncated copies keep


def check_tokenizer(reader: type[TokenizerReader], path: Path | str) -> None:
    """Open a tokenizer with a reader; raise AssertionError at the first broken rule."""
    path = Path(path)
    expect(reader.recognizes(path), f"{path} is not recognised")
    ours = reader.open(path)
    expect(isinstance(ours, Tokenizer), f"open returns {type(ours).__name__}; expected Tokenizer")
    for text in TEXTS:
        check_text(ours, text)
    for token in range(ours.vocab_size):
        expect(isinstance(ours.piece(token), bytes), f"token {token} has no bytes")
    for each in (ours.begin_id, *ours.end_ids):
        known = each is None or 0 <= each < ours.vocab_size
        expect(known, f"token {each} begins or ends texts; there are {ours.vocab_size} tokens")
    with tempfile.TemporaryDirectory() as folder:
        check_others(reader, path, Path(folder))


def check_text(ours: Tokenizer, text: str) -> None:
    """Check the ids of one text, and the text that they decode to, whole and streamed.

    `ours` is the tokenizer under test.
    """
    shown = f"text {text[:30]!r}"
    ids = ours.encode(text, begin=False)
    bad = [token for token in ids if not 0 <= token < ours.vocab_size]
    expect(not bad, f"{shown} has the ids {bad[:5]}; there are {ours.vocab_size} tokens")
    ends = {ours.begin_id, *ours.end_ids} & set(ids)
    expect(not ends, f"{shown} becomes the control tokens {ends} as ordinary text")
    guarded = ours.encode(ours.guard(text), special=True, begin=False)
    expect(guarded == ids, f"{shown} has other ids in a prompt, though it is guarded")
    tail = Tail(ours)
    streamed = "".join([*map(tail.push, ids), tail.flush()])
    expect(streamed == ours.decode(ids), f"{shown} is streamed as {streamed[:40]!r}")


def check_others(reader: type[TokenizerReader], path: Path, folder: Path) -> None:
    """Check that `reader` does not recognise other files, and refuses damaged tokenizers cleanly.

    Writes other files, and truncated copies of the tokenizer `path`, into the empty folder
    `folder`. A copy may be read or raise CheckpointError, but no other error.
    """
    (folder / "note.txt").write_text("no tokenizer\n")
    (folder / "nothing").mkdir()
    for other in (folder / "note.txt", folder / "nothing"):
        expect(not reader.recognizes(other), f"{other.name} is recognised as a tokenizer")
    if not path.is_file():
        return
    whole = path.read_bytes()
    for cut in CUTS:
        damaged = folder / path.name
        damaged.write_bytes(whole[: int(len(whole) * cut)])
        try:
            reader.open(damaged).encode(TEXTS[2])
        except CheckpointError:
            continue
        except Exception as error:
            raise AssertionError(
                f"a file cut to {cut:.0%} raised {type(error).__name__}: {error}; expected "
                f"BadTokenizer"
            ) from error


def expect(held: bool, broken: str) -> None:
    """Raise AssertionError with the message `broken` unless `held`."""
    if not held:
        raise AssertionError(broken)
