"""Protobuf messages: reads the wire format of a serialized message, within bounds.

Called by `sentencepiece_file.py`. Knows wire types and field numbers; must not know what a field
means. A message is walked once; every length is checked before bytes are taken.
"""

import struct
from dataclasses import dataclass

from jaxllama.errors import BadTokenizer

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types; 3 and 4 are groups, long deprecated
FIXED_SIZES = {FIXED64: 8, FIXED32: 4}
MAX_FIELDS = 1 << 20  # of one message
MAX_VARINT = 10  # bytes

WireValue = int | bytes


@dataclass(frozen=True)
class ProtobufMessage:
    """The fields of one message, by number, in the order of the file."""

    where: str  # for errors: the file and the part of it
    fields: dict[int, list[WireValue]]

    def whole(self, number: int, default: int) -> int:
        """Return field `number` as an integer; `default` if the message lacks it.

        If the field has several values, the last one counts.
        """
        value = self._last(number)
        if value is None:
            return default
        if not isinstance(value, int):
            raise self._wrong(number, "a whole number")
        return value - (1 << 64) if value >> 63 else value

    def flag(self, number: int, *, default: bool) -> bool:
        """Return field `number` as a boolean; `default` if the message lacks it."""
        return bool(self.whole(number, int(default)))

    def real(self, number: int) -> float:
        """Return field `number` as a 32-bit float; 0.0 if the message lacks it."""
        value = self._last(number)
        if value is None:
            return 0.0
        if not isinstance(value, bytes) or len(value) != FIXED_SIZES[FIXED32]:
            raise self._wrong(number, "a 32-bit number")
        return struct.unpack("<f", value)[0]

    def text(self, number: int, default: str) -> str:
        """Return field `number` as text; `default` if the message lacks it."""
        try:
            return self.raw(number, default.encode()).decode()
        except UnicodeDecodeError as error:
            raise self._wrong(number, f"UTF-8 ({error.reason})") from error

    def raw(self, number: int, default: bytes = b"") -> bytes:
        """Return field `number` as bytes; `default` if the message lacks it."""
        value = self._last(number)
        if value is None:
            return default
        if not isinstance(value, bytes):
            raise self._wrong(number, "bytes")
        return value

    def message(self, number: int) -> "ProtobufMessage":
        """Return field `number` as a nested message, which is empty if this message lacks it.

        If the field has several values, they are joined: protobuf may write one message in parts.
        """
        parts = self.parts(number)
        return read_message(b"".join(parts), f"{self.where}, field {number}")

    def parts(self, number: int) -> list[bytes]:
        """Return all values of the repeated field `number`, each a serialized message."""
        values = self.fields.get(number, [])
        if not all(isinstance(value, bytes) for value in values):
            raise self._wrong(number, "messages")
        return [value for value in values if isinstance(value, bytes)]

    def _last(self, number: int) -> WireValue | None:
        values = self.fields.get(number)
        return values[-1] if values else None

    def _wrong(self, number: int, wanted: str) -> BadTokenizer:
        return BadTokenizer(f"{self.where}: field {number} is damaged; expected {wanted}")


def read_message(raw: bytes, where: str) -> ProtobufMessage:
    """Read the fields of a message; raise BadTokenizer, naming `where`, if it is damaged."""
    fields: dict[int, list[WireValue]] = {}
    at = count = 0
    while at < len(raw):
        start = at
        tag, at = read_varint(raw, at, where)
        kind = tag & 7
        value: WireValue
        if kind == VARINT:
            value, at = read_varint(raw, at, where)
        else:
            length, at = read_length(raw, at, kind, where)
            if length > len(raw) - at:
                raise BadTokenizer(
                    f"{where}: the field at byte {start} has {length} bytes and only "
                    f"{len(raw) - at} are left; the file is cut off or damaged"
                )
            value, at = raw[at : at + length], at + length
        count += 1
        if count > MAX_FIELDS or tag >> 3 == 0:
            raise BadTokenizer(
                f"{where}: byte {start} starts field {tag >> 3}, the {count}. of the message; "
                f"expected numbers from 1 on and at most {MAX_FIELDS} fields"
            )
        fields.setdefault(tag >> 3, []).append(value)
    return ProtobufMessage(where, fields)


def read_length(raw: bytes, at: int, kind: int, where: str) -> tuple[int, int]:
    """Return the number of bytes of a field's value, and the offset where the value starts.

    `at` is the offset after the field's tag, `kind` its wire type; errors name `where`.
    """
    if kind == BYTES:
        return read_varint(raw, at, where)
    if kind not in FIXED_SIZES:
        raise BadTokenizer(
            f"{where}: byte {at} follows a field of wire type {kind}; expected 0, 1, 2 or 5 "
            f"(is this a SentencePiece file?)"
        )
    return FIXED_SIZES[kind], at


def read_varint(raw: bytes, at: int, where: str) -> tuple[int, int]:
    """Return the varint at offset `at`, reduced to 64 bits, and the offset after it.

    Errors name `where`.
    """
    value = shift = 0
    for byte in raw[at : at + MAX_VARINT]:
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004 - the highest bit says that more bytes follow
            return value & ((1 << 64) - 1), at
        shift += 7
    raise BadTokenizer(f"{where}: the number at byte {at} does not end; the file is damaged")
