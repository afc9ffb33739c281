"""Whole files: written so that a crash leaves the old file or the new one.

Used by dialects that keep files. Until a file is whole, its name ends with `.part`.
"""

import secrets
from pathlib import Path

PART = ".part"


def open_folder(folder: Path) -> None:
    """Make a folder that only this user can read; delete unfinished files in it."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for path in folder.glob(f"*{PART}"):
        path.unlink(missing_ok=True)


def part_in(folder: Path) -> Path:
    """Return a new path in a folder for a file that is still being written."""
    return folder / f"{secrets.token_hex(8)}{PART}"


def write_whole(path: Path, raw: bytes) -> None:
    """Write `raw` to a file at once: after a crash, the path has the old content or the new one."""
    part = part_in(path.parent)
    part.write_bytes(raw)
    part.replace(path)
