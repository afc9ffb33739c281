"""Special tokens in text: finds them in a prompt, and keeps users from writing them.

Used by `Tokenizer`. Knows strings and ids; must not know vocabularies, models or templates.

A chat prompt mixes text of the template, where `<|im_end|>` is one control token, with text of the
user, where it is ten ordinary characters. `guard` marks the user's text before the template
embeds it: it inserts a private-use character, the mark, at every position where a control token
would be read, and doubles every mark in the text. `split` reads the character after a mark as
plain text.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from jaxllama.errors import BadTokenizer

LONGEST = 512  # characters of one special token
# White space by Unicode; Python's `str.isspace` adds four control characters.
SPACES = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)
SPACE = re.compile(f"[{SPACES}]*")
FIRST_MARK, LAST_MARK = 0xF0000, 0xFFFFD  # a private-use plane that icon fonts do not use


@dataclass(frozen=True)
class Special:
    """One token that is written as a fixed text."""

    id: int
    strip_left: bool = False  # swallows white space before it
    strip_right: bool = False  # swallows white space after it


class Specials:
    """The special tokens of a model, by text."""

    def __init__(
        self,
        control: Mapping[str, Special],  # read only with `control=True`
        always: Mapping[str, Special],  # read in any text
    ) -> None:
        for text in (*control, *always):
            if not 0 < len(text) <= LONGEST:
                raise BadTokenizer(
                    f"special token {text[:40]!r} has {len(text)} characters; "
                    f"expected 1 to {LONGEST}"
                )
        self.control = control
        self.always = always
        self.mark = mark = unused_mark(control)
        self.ordered = sorted(control)
        self.longest = max(map(len, control), default=0)
        heads = "".join(re.escape(head) for head in sorted({text[0] for text in control}))
        self.in_any_text = compile_pattern(any_of(always))
        self.in_prompt = compile_pattern(f"{mark}[{mark}{heads}]|{any_of(control)}")
        self.unsafe = compile_pattern(f"{mark}|(?={any_of(control)})")

    def guard(self, text: str) -> str:
        """Return a user's text with mark characters, so that no control token is read in it.

        `split` reads no control token at a mark, also when a chat template has put the text in a
        prompt.
        """
        places = {match.start() for match in self.unsafe.finditer(text)}
        cuts = (0, *sorted(places | self.unfinished(text)), len(text))
        return self.mark.join(text[left:right] for left, right in pairwise(cuts))

    def unfinished(self, text: str) -> set[int]:
        """Return positions near the end of the text where a control token may have begun.

        Text that follows could complete it. Both the real end of the text and the end before
        trailing white space count, because templates may remove that white space.
        """
        ends = {len(text), len(text.rstrip())}  # templates trim
        return {
            place
            for end in ends
            for place in range(max(0, end - self.longest + 1), end)
            if self.starts_control_token(text[place:end])
        }

    def starts_control_token(self, head: str) -> bool:
        """Say whether `head` is the start of a control token's text, but not all of it."""
        after = bisect_right(self.ordered, head)
        return after < len(self.ordered) and self.ordered[after].startswith(head)

    def split(self, text: str, *, control: bool) -> Iterator[str | int]:
        """Yield ordinary text as strings and special tokens as ids, in order; no string is empty.

        Control tokens are read only with `control`, and not at the mark characters that `guard`
        has put in the text.
        """
        if not control:
            yield from self.split_at(text, self.in_any_text, self.always)
            return
        for part in self.split_at(text, self.in_prompt, self.control):
            if isinstance(part, int):
                yield part
            else:
                yield from self.split_at(part, self.in_any_text, self.always)

    def split_at(
        self, text: str, pattern: re.Pattern[str], known: Mapping[str, Special]
    ) -> Iterator[str | int]:
        """Yield ordinary text, and the id of every special token that `pattern` matches.

        `known` maps the texts of special tokens to tokens. Any other match is a mark character and
        the character after it, which the mark makes ordinary text: only the mark is removed.
        """
        stretch: list[str] = []
        done = 0
        for match in pattern.finditer(text):
            stretch.append(text[done : match.start()])
            done = match.end()
            found = known.get(match[0])
            if found is None:  # a mark and the character it protects
                stretch.append(match[0][1:])
                continue
            before = "".join(stretch)
            before = before.rstrip(SPACES) if found.strip_left else before
            if before:
                yield before
            yield found.id
            stretch = []
            if found.strip_right:
                done = SPACE.match(text, done).end()  # type: ignore[union-attr]
        rest = "".join((*stretch, text[done:]))
        if rest:
            yield rest


def unused_mark(texts: Iterable[str]) -> str:
    """Return a private-use character that none of `texts` contains."""
    used = set("".join(texts))
    for code in range(FIRST_MARK, LAST_MARK):
        if chr(code) not in used:
            return chr(code)
    raise BadTokenizer("special tokens use every character of a private-use plane")


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Compile a regular expression that contains the texts of special tokens.

    Raise BadTokenizer, which names these texts as the cause, if that fails.
    """
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError, MemoryError) as error:
        raise BadTokenizer(
            f"special tokens cannot be searched for ({type(error).__name__}); expected fewer or "
            f"less deeply nested texts"
        ) from error


def any_of(texts: Iterable[str]) -> str:
    """Return a regular expression for any one of `texts`; where several match, the longest does.

    Common prefixes are written once, or hundreds of texts would be tried one by one at each
    character. Without texts, the expression matches nothing.
    """
    ordered = sorted(set(texts))
    if not ordered:
        return r"(?!)"
    return shared_heads(ordered, 0)


def shared_heads(texts: list[str], depth: int) -> str:
    """Return a regular expression for any one of `texts` without its first `depth` characters.

    `texts` are sorted, all different, and begin with the same `depth` characters.
    """
    ends_here = texts[0][depth:] == ""
    longer = texts[1:] if ends_here else texts
    branches: list[str] = []
    first = 0
    while first < len(longer):
        last = first
        while last < len(longer) and longer[last][depth] == longer[first][depth]:
            last += 1
        group = longer[first:last]
        head = common_head(group[0], group[-1], depth)  # sorted: the ends differ most
        branches.append(re.escape(group[0][depth:head]) + shared_heads(group, head))
        first = last
    if ends_here:
        branches.append("")  # tried last: the longest text wins
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"


def common_head(left: str, right: str, start: int) -> int:
    """Return the length of the common prefix of `left` and `right`.

    Their first `start` characters are known to be equal and are not compared.
    """
    place = start
    while place < min(len(left), len(right)) and left[place] == right[place]:
        place += 1
    return place
