"""All targets by name, and the bench of each: sound inputs, changes of them, and the reader."""

from pathlib import Path
from random import Random
from typing import Protocol

from tests.fuzz import targets, texts, wire


class Bench(Protocol):
    """A reader under test, with its sound inputs."""

    sound: list[bytes]
    seconds: float  # of processor time that an input may take

    def attempt(self, raw: bytes) -> Exception | None:
        """Read some bytes; return the declared error if they are refused, raise any other."""

    def changed(self, random: Random) -> bytes:
        """Return a sound input with some changes."""

    def close(self) -> None:
        """Free what the bench holds."""


NAMES = [*targets.TARGETS, *texts.READERS, *wire.names()]


def open_bench(name: str, folder: Path) -> Bench:
    """Return the bench of a target; it keeps its files in the folder."""
    if name in targets.TARGETS:
        return targets.Bench(name, folder)
    if name in texts.READERS:
        return texts.TextBench(name, folder)
    return wire.WireBench(name, folder)
