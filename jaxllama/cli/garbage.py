"""Garbage collection of a program that starts: rare, because nearly all objects stay.

Used by the commands. By default, collections take about a sixth of the time that imports and
loading need, and more at exit. Knows no command.
"""

import atexit
import gc

USUAL = gc.get_threshold()
OBJECTS = 50_000  # made between two collections while the program starts


def collect_rarely() -> None:
    """Let Python collect garbage rarely from now on, and not at exit.

    At exit the system frees all memory.
    """
    gc.set_threshold(OBJECTS)
    atexit.register(gc.freeze)


def collect_as_usual() -> None:
    """Let Python collect garbage as often as by default; for use after a model is loaded."""
    gc.set_threshold(*USUAL)
