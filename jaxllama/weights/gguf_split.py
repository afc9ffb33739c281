"""Split GGUF files: finds and opens the parts NAME-00001-of-0000N.gguf of one model.

Called by the GGUF reader with any of the parts. The first part has the metadata; every part has the
number of parts, its own number and the number of all tensors. Knows no model.
"""

import re
from contextlib import ExitStack
from pathlib import Path

from jaxllama.errors import BadHeader, CheckpointError
from jaxllama.weights.binary import BinaryFile
from jaxllama.weights.fields import CheckedFields, shown
from jaxllama.weights.gguf_header import GgufHeader, GgufTensor, read_header

PART = re.compile(
    r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})[.]gguf", re.ASCII | re.DOTALL
)
MAX_PARTS = 1024
SHOWN = 8  # names in one error


def open_header(path: Path) -> tuple[GgufHeader, list[BinaryFile]]:
    """Read the header of a GGUF file, or of all parts of a split one as if they were one file.

    Returns the open files, too; the caller closes them.
    """
    with ExitStack() as opened:
        file = BinaryFile(path)
        opened.callback(file.close)
        header = read_header(file)
        files = [file]
        count = CheckedFields(header.metadata, path.name).whole("split.count", 1, low=0)
        if count > 1:
            paths = parts_of(path, count)
            for other in paths:
                if other != path:
                    files.append(BinaryFile(other))
                    opened.callback(files[-1].close)
            headers = {each.path: header if each is file else read_header(each) for each in files}
            header = joined([(each, headers[each]) for each in paths])
        opened.pop_all()
    return header, files


def parts_of(path: Path, count: int) -> list[Path]:
    """Return the paths of all `count` parts of a split file, in order; `path` is one of them.

    Raise CheckpointError if it is not named like a part, or parts are missing.
    """
    match = PART.fullmatch(path.name)
    if match is None or int(match["count"]) != count or count > MAX_PARTS:
        raise CheckpointError(
            f"{path.name} is one of {count} parts of a split model; expected a name like "
            f"NAME-00001-of-{min(count, MAX_PARTS):05}.gguf, and at most {MAX_PARTS} parts, all in "
            f"one folder"
        )
    paths = [
        path.with_name(f"{match['stem']}-{number:05}-of-{count:05}.gguf")
        for number in range(1, count + 1)
    ]
    missing = [each.name for each in paths if not each.is_file()]
    if missing:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise CheckpointError(
            f"{path.name} is one of {count} parts, of which {len(missing)} are missing: "
            f"{', '.join(missing[:SHOWN])}{more} (download them too, into the same folder)"
        )
    return paths


def joined(parts: list[tuple[Path, GgufHeader]]) -> GgufHeader:
    """Return one header for all parts: the metadata of the first part, and the tensors of all.

    Raise BadHeader if numbers of parts or tensors contradict each other.
    """
    tensors: dict[str, GgufTensor] = {}
    for number, (path, header) in enumerate(parts):
        fields = CheckedFields(header.metadata, path.name)
        stated = (fields.whole("split.no", low=0), fields.whole("split.count"))
        if stated != (number, len(parts)):
            raise BadHeader(
                f"{path.name} says that it is part {stated[0] + 1} of {stated[1]}; expected part "
                f"{number + 1} of {len(parts)}"
            )
        for name, entry in header.tensors.items():
            if name in tensors:
                raise BadHeader(
                    f"{path.name}: tensor {shown(name)} is in {tensors[name].file.path.name} too"
                )
            tensors[name] = entry
    first, header = parts[0]
    total = CheckedFields(header.metadata, first.name).whole(
        "split.tensors.count", len(tensors), low=0
    )
    if total != len(tensors):
        raise BadHeader(
            f"{first.name} says that its {len(parts)} parts have {total} tensors; they have "
            f"{len(tensors)}"
        )
    return GgufHeader(header.metadata, tensors)


def first_parts(folder: Path) -> list[Path]:
    """Return the GGUF files in and below a folder; of a split file, only the first part."""
    found = sorted(folder.rglob("*.gguf"))
    matches = {path: PART.fullmatch(path.name) for path in found}
    return [path for path, match in matches.items() if match is None or int(match["number"]) == 1]
