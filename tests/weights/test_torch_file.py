"""Torch checkpoints: every form and element type is read, everything else is refused by name."""

import io
import os
import pickle
import pickletools
import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch_writer as writer

from jaxllama.errors import BadHeader, CheckpointError, UnsupportedModel
from jaxllama.weights import torch_pickle
from jaxllama.weights.torch_file import TorchFile
from jaxllama.weights.torch_pickle import ACTIONS, REFUSED, read_torch_pickle

RANDOM = np.random.default_rng(1)
ARRAYS = {
    "single": RANDOM.standard_normal((3, 5)).astype(np.float32),
    "half": RANDOM.standard_normal((4, 2, 3)).astype(np.float16),
    "brain": RANDOM.standard_normal((7,)).astype(ml_dtypes.bfloat16),
    "double": RANDOM.standard_normal((2, 2)),
    "signed": RANDOM.integers(-128, 128, (9,)).astype(np.int8),
    "scalar": np.array(3.5, np.float32),
    "nothing": np.zeros((0, 4), np.float32),
}


def opened(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a file."""
    file = TorchFile(path)
    try:
        return {name: file.read(name) for name in file.tensors}
    finally:
        file.close()


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        opened(path)
    return str(caught.value)


@pytest.mark.parametrize("form", ["zip", "deflated", "folder"])
@pytest.mark.parametrize("versions", [False, True])
def test_every_form_gives_the_same_values(tmp_path: Path, form: str, versions: bool):
    path = writer.save_torch(tmp_path / "a.pth", ARRAYS, form=form, versions=versions)
    found = opened(path)
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
        assert found[name].flags.writeable


def test_an_archive_without_a_folder_at_its_top(tmp_path: Path):
    path = writer.write_zip(tmp_path / "a.pth", writer.parts_of(ARRAYS), root="")
    assert opened(path).keys() == ARRAYS.keys()


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [((3, 4), (4, 1), 0), ((4, 3), (1, 4), 0), ((2, 2), (8, 2), 1), ((5,), (2,), 2), ((), (), 11)],
)
def test_a_strided_view_of_a_shared_storage(tmp_path: Path, shape, strides, offset):
    values = np.arange(12, dtype=np.float32)
    held = writer.storage("0", "FloatStorage", 12)
    parts = {
        "data.pkl": writer.pickled({"view": writer.tensor(held, shape, strides, offset)}),
        "data/0": values.tobytes(),
    }
    found = opened(writer.write_zip(tmp_path / "a.pth", parts))["view"]
    expected = np.lib.stride_tricks.as_strided(values[offset:], shape, [4 * s for s in strides])
    np.testing.assert_array_equal(found, expected)
    assert found.flags.c_contiguous


def test_a_file_with_64_bit_directory(tmp_path: Path):
    path = writer.save_torch(tmp_path / "a.pth", ARRAYS)
    path.write_bytes(with_64_bits(path.read_bytes()))
    assert opened(path).keys() == ARRAYS.keys()


def with_64_bits(raw: bytes) -> bytes:
    """The zip file with its directory as torch writes it: all sizes in 64 bits."""
    count, _, start = struct.unpack("<HII", raw[-12:-2])
    directory, at = b"", start
    for _ in range(count):
        fields = list(struct.unpack_from("<4s6H3I5H2I", raw, at))
        name = raw[at + 46 : at + 46 + fields[10]]
        extra = struct.pack("<2H3Q", 1, 24, fields[9], fields[8], fields[16])
        at += 46 + fields[10] + fields[11] + fields[12]
        fields[8] = fields[9] = fields[16] = 2**32 - 1
        fields[11] = len(extra)
        directory += struct.pack("<4s6H3I5H2I", *fields) + name + extra
    end = start + len(directory)
    end64 = struct.pack(
        "<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(directory), start
    )
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, end, 1)
    last = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 2**16 - 1, 2**16 - 1, *[2**32 - 1] * 2, 0)
    return raw[:start] + directory + end64 + locator + last


class Runs:
    """Pickles to a call of os.system."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_calls_the_system_is_refused_and_not_run(tmp_path: Path, protocol: int):
    raw = pickle.dumps({"a": Runs(tmp_path / "canary")}, protocol)
    path = writer.write_zip(tmp_path / "a.pth", {"data.pkl": raw})
    words = refusal(path)
    if protocol >= 2:
        assert "'posix.system', which is not among the allowed names" in words
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "name",
    [
        "builtins.eval", "builtins.getattr", "os.system", "subprocess.Popen", "torch.load",
        "torch._utils._rebuild_parameter", "torch._utils._rebuild_tensor", "torch.Tensor",
        "torch.QInt8Storage", "torch.storage.UntypedStorage", "numpy.core.multiarray._reconstruct",
        "torch.HalfStorage.__class__", "collections.OrderedDict.pop",
    ],
)  # fmt: skip
def test_every_other_name_is_refused_by_name(name: str):
    with pytest.raises(UnsupportedModel, match=name.replace(".", r"\.")):
        read_torch_pickle(b"\x80\x02" + writer.ask(name) + b")R.", "here")
    module, _, called = name.rpartition(".")
    stacked = b"\x80\x04" + writer.text(module) + writer.text(called) + b"\x93)R."
    with pytest.raises(UnsupportedModel, match=name.replace(".", r"\.")):
        read_torch_pickle(stacked, "here")


def test_the_allowed_opcodes_import_and_call_nothing():
    known = {op.code.encode("latin1"): op.name for op in pickletools.opcodes}
    assert {known[code] for code in ACTIONS}.isdisjoint(
        {"INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID"}
    )
    assert {known[code] for code in REFUSED} == set(REFUSED.values())
    for code, name in known.items():
        if code not in ACTIONS and code != b".":
            with pytest.raises(UnsupportedModel, match=REFUSED.get(code, "opcode 0x")):
                read_torch_pickle(b"\x80\x02" + code + b"\0" * 8 + b".", name)


def test_plain_values_are_read_as_pickle_reads_them():
    value = {"a": [1, -1, 300, 70000, 2**40, -(2**62), 1.5, True, False, None, "é"], "b": ((), [])}
    for protocol in (2, 3, 4, 5):
        found = read_torch_pickle(pickle.dumps(value, protocol), "here").entries
        assert found["a"].items == value["a"]
        assert not found["a"].is_tuple
        assert [each.is_tuple for each in found["b"].items] == [True, False]


DICT = b"\x80\x02}"
STORAGE = writer.storage("0", "FloatStorage", 4)
HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "ends at byte 0"),
    "no stop": (b"\x80\x02}", "ends at byte 3"),
    "a list": (b"\x80\x02].", "expected a dict of tensors"),
    "protocol 9": (b"\x80\x09}.", "protocol 9"),
    "values left": (b"\x80\x02}}.", "left over"),
    "bytes left": (b"\x80\x02}.x", "left over"),
    "mark left": (b"\x80\x02}(.", "empty stack"),
    "empty stack": (b"\x80\x02s.", "empty stack"),
    "below a mark": (b"\x80\x02}(\x85.", "empty stack"),
    "no mark": (b"\x80\x02u.", "has not begun"),
    "memo": (b"\x80\x02h\x07.", "recalls value 7"),
    "huge text": (b"\x80\x02X\xff\xff\xff\xff", "ends at byte"),
    "huge frame": (b"\x80\x04\x95\xff", "ends at byte"),
    "bad text": (b"\x80\x02X\x01\0\0\0\xff.", "not UTF-8"),
    "huge integer": (b"\x80\x02\x8a\xff" + b"1" * 255 + b".", "number of 255 bytes"),
    "name without end": (b"\x80\x02c" + b"a" * 5000, "name without end"),
    "name is a list": (b"\x80\x04" + writer.text("torch") + b"]\x93.", "expected two names"),
    "number as key": (DICT + b"K\x01Ns.", "as the key of a dict"),
    "key twice": (DICT + b"(" + (writer.text("a") + b"N") * 2 + b"u.", "'a' twice"),
    "odd items": (DICT + b"(" + writer.text("a") + b"u.", "keys and values"),
    "items of None": (b"\x80\x02NNNs.", "sets items of None"),
    "append to a dict": (b"\x80\x02}Na.", "expected a list"),
    "append to a tuple": (b"\x80\x02)Na.", "expected a list"),
    "itself": (b"\x80\x02]q\x00h\x00a.", "into itself"),
    "changed inside": (b"\x80\x02]q\x00\x85h\x00Na.", "lies inside"),
    "deep marks": (b"\x80\x02" + b"(" * 1000 + b".", "nests deeper"),
    "deep tuples": (b"\x80\x02)" + b"\x85" * 1000 + b".", "nests deeper"),
    "deep lists": (b"\x80\x02" + b"]" * 1000 + b"a" * 999 + b".", "nests deeper"),
    "large stack": (b"\x80\x02" + b"N" * 70_000 + b".", "values on its stack"),
    "large memo": (b"\x80\x04}" + b"\x94" * 300_000 + b".", "remembers more than"),
    "calls a dict": (b"\x80\x02})R.", "calls a dict of 0"),
    "calls with a list": (b"\x80\x02" + writer.ask("collections.OrderedDict") + b"]R.", "a tuple"),
    "calls a storage": (b"\x80\x02" + writer.ask("torch.FloatStorage") + b")R.", "calls a Storage"),
    "dict of items": (
        b"\x80\x02" + writer.ask("collections.OrderedDict") + b"]\x85R.", "with arguments"
    ),
    "state of a list": (b"\x80\x02]}b.", "sets the state of a list"),
    "no storage": (b"\x80\x02NQ.", "describes no storage"),
    "another id": (b"\x80\x02" + writer.text("x") + b"\x85Q.", "describes no storage"),
    "negative storage": (
        b"\x80\x02" + writer.storage("0", "FloatStorage", -1) + b".", "describes no storage"
    ),
    **{
        name: (writer.pickled({"a": writer.tensor(STORAGE, *view)}), words)
        for name, (view, words) in {
            "past the storage": (((5,), (1,)), "storage '0' has 4 elements"),
            "offset past the storage": (((2,), (1,), 3), "has 4 elements"),
            "stride past the storage": (((2,), (4,)), "has 4 elements"),
            "negative size": (((-1,), (1,)), "no tuples of one length"),
            "negative stride": (((2,), (-1,)), "no tuples of one length"),
            "negative offset": (((2,), (1,), -1), "without a storage"),
            "lengths differ": (((2, 2), (1,)), "no tuples of one length"),
            "huge size": (((2**62, 2**62), (0, 0)), "has 4 elements"),
            "repeated elements": (((2**40,), (0,)), "has 4 elements"),
            "many dimensions": (((1,) * 9, (1,) * 9), "9 dimensions"),
        }.items()
    },
    "a number for a storage": (
        writer.pickled({"a": writer.tensor(b"K\x01", (1,), (1,))}), "without a storage",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_pickle(case: str):
    raw, words = HOSTILE[case]
    with pytest.raises(CheckpointError, match=words) as caught:
        read_torch_pickle(raw, "here")
    assert len(str(caught.value)) < 1000


def test_a_pickle_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch_pickle, "MAX_STEPS", 1000)
    with pytest.raises(BadHeader, match="more than 1000 opcodes"):
        read_torch_pickle(b"\x80\x02}" + b"q\x00" * 1000 + b".", "here")


def test_older_forms_are_named(tmp_path: Path):
    path = tmp_path / "a.pth"
    path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2) + b"rest")
    assert "torch before 1.6" in refusal(path)
    path.write_bytes(bytes(257) + b"ustar" + bytes(300))
    assert "torch before 1.6" in refusal(path)
    path.write_bytes(b"text")
    assert "does not begin like a zip file" in refusal(path)


def test_a_training_checkpoint_is_named(tmp_path: Path):
    raw = pickle.dumps({"model": {}, "step": 3}, 2)
    path = writer.write_zip(tmp_path / "a.pth", {"data.pkl": raw})
    assert "'model' is a dict of 0; expected a tensor (is this a training" in refusal(path)


PARTS = writer.parts_of({"a": ARRAYS["single"]})
LYING_PARTS: dict[str, tuple[dict[str, bytes], str]] = {
    "big endian": (PARTS | {"byteorder": b"big"}, "byte order"),
    "huge byte order": (PARTS | {"byteorder": b"little" * 99}, "byte order"),
    "short storage": (PARTS | {"data/0": bytes(59)}, "has 59 bytes; the pickle states 60"),
    "long storage": (PARTS | {"data/0": bytes(61)}, "has 61 bytes"),
    "storage missing": ({"data.pkl": PARTS["data.pkl"]}, "has no bytes"),
    "pickle missing": ({"data/0": b"x"}, "holds 0 files data.pkl"),
    "two pickles": (PARTS | {"other/data.pkl": PARTS["data.pkl"]}, "holds 2 files data.pkl"),
    **{
        f"key {key}": (
            {"data.pkl": writer.pickled(
                {"a": writer.tensor(writer.storage(key, "FloatStorage", 1), (1,), (1,))}
            )},
            "is no number",
        )
        for key in ("../../secret", "/etc/passwd", "", ".", "0/../1", "٣", "1" * 10, "0\n", "a\0b")
    },
    "two types of a storage": (
        {
            "data.pkl": writer.pickled(
                {
                    "a": writer.tensor(writer.storage("0", "FloatStorage", 1), (1,), (1,)),
                    "b": writer.tensor(writer.storage("0", "HalfStorage", 2), (1,), (1,)),
                }
            ),
            "data/0": bytes(4),
        },
        "described twice",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LYING_PARTS)
def test_parts_that_do_not_fit(tmp_path: Path, case: str):
    parts, words = LYING_PARTS[case]
    assert words in refusal(writer.write_zip(tmp_path / "a.pth", parts))


def test_keys_do_not_lead_out_of_an_unpacked_folder(tmp_path: Path):
    (tmp_path / "secret").write_bytes(bytes(4))
    held = writer.storage("../../secret", "FloatStorage", 1)
    parts = {"data.pkl": writer.pickled({"a": writer.tensor(held, (1,), (1,))})}
    assert "is no number" in refusal(writer.write_unpacked(tmp_path / "a", parts))


def zip_of(names: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", method) as file:
        for name, raw in names.items():
            file.writestr(name, raw)
    return held.getvalue()


def changed(raw: bytes, old: bytes, new: bytes, count: int = -1) -> bytes:
    assert old in raw
    return raw.replace(old, new, count)


SOUND = zip_of({f"a/{part}": raw for part, raw in PARTS.items()})
CENTRAL = SOUND.index(b"PK\1\2")
LAST = CENTRAL + SOUND[CENTRAL:].rindex(b"PK\1\2")
END = SOUND.index(b"PK\5\6")


def poked(at: int, layout: str, *values: int) -> bytes:
    """The sound file with other numbers at a place."""
    raw = bytearray(SOUND)
    struct.pack_into(layout, raw, at, *values)
    return bytes(raw)


BOMB = zip_of({"a/data.pkl": PARTS["data.pkl"], "a/data/0": bytes(8 << 20)}, zipfile.ZIP_DEFLATED)
DEFLATED = zip_of({f"a/{part}": raw for part, raw in PARTS.items()}, zipfile.ZIP_DEFLATED)
DEFLATED_AT = DEFLATED.index(b"PK\1\2")
LYING_ZIPS: dict[str, tuple[bytes, str]] = {
    "no directory": (SOUND[:CENTRAL], "no zip directory"),
    "bytes after": (SOUND + b"x", "bytes follow"),
    "comment lies": (poked(END + 20, "<H", 7), "bytes follow"),
    "a part of several": (poked(END + 4, "<H", 1), "one of several parts"),
    "too many entries": (poked(END + 8, "<HH", 60000, 60000), "ends inside of an entry"),
    "too few entries": (poked(END + 8, "<HH", 1, 1), "more bytes"),
    "directory too long": (poked(END + 12, "<I", 2**31), "entries and 2147483648 bytes"),
    "directory past its end": (poked(END + 16, "<I", END), "ends after byte"),
    "directory elsewhere": (poked(END + 16, "<I", 3), "is damaged"),
    "64 bits missing": (poked(END + 8, "<HH", 65535, 65535), "64-bit end"),
    "64-bit size missing": (poked(CENTRAL + 24, "<I", 2**32 - 1), "lacks its 64-bit"),
    "size lies": (poked(CENTRAL + 24, "<I", 10**9), "states 1000000000 bytes"),
    "both sizes lie": (poked(CENTRAL + 20, "<II", 10**9, 10**9), "overlap"),
    "the last size lies": (poked(LAST + 20, "<II", 10**9, 10**9), "the file has"),
    "start lies": (poked(CENTRAL + 42, "<I", 1), "local header"),
    "start is far": (poked(CENTRAL + 42, "<I", 2**32 - 2), "were asked for"),
    "same start": (poked(LAST + 42, "<I", 0), "local header"),
    "encrypted": (poked(CENTRAL + 8, "<H", 1), "encrypted"),
    "method": (poked(CENTRAL + 10, "<H", 12), "method 12"),
    "methods differ": (poked(CENTRAL + 10, "<H", 8), "local header"),
    "names differ": (changed(SOUND, b"a/data.pkl", b"a/data.pkx", 1), "local header"),
    "bomb": (BOMB, "states 8388608 bytes"),
    "bomb that lies": (
        DEFLATED[: DEFLATED_AT + 24] + struct.pack("<I", 20) + DEFLATED[DEFLATED_AT + 28 :],
        "does not unpack to the 20 bytes",
    ),
    "damaged stream": (
        DEFLATED[:50] + bytes([DEFLATED[50] ^ 255]) + DEFLATED[51:], "unpack",
    ),
    **{
        f"name {name}": (
            changed(SOUND, b"a/byteorder", name.encode().ljust(11, b"x")[:11]), "is no path"
        )
        for name in ("../../evil", "/etc/passwd", "a\\..\\b", "a/../b", "a\0b")
    },
    "name is not UTF-8": (changed(SOUND, b"a/byteorder", b"a/byte\xff\xfeder"), "not UTF-8"),
    "name twice": (changed(SOUND, b"a/byteorder", b"a/version\0\0"), "is no path"),
}  # fmt: skip


@pytest.mark.parametrize("case", LYING_ZIPS)
def test_lying_zip(tmp_path: Path, case: str):
    raw, words = LYING_ZIPS[case]
    (tmp_path / "a.pth").write_bytes(raw)
    assert words in refusal(tmp_path / "a.pth")


def test_overlapping_entries_are_refused(tmp_path: Path):
    """Two entries of one name and start, as in bombs that unpack the same bytes many times."""
    raw = zip_of({"a/data.pkl": PARTS["data.pkl"], "a/data/0": b"x"})
    at = raw.index(b"PK\1\2")
    second = at + raw[at:].index(b"PK\1\2", 4)
    entry = bytearray(raw[at:second].replace(b"a/data.pkl", b"a/data.pkl"))
    both = raw[:at] + bytes(entry) * 2
    end = bytearray(raw[raw.index(b"PK\5\6") :])
    struct.pack_into("<HHII", end, 8, 2, 2, 2 * len(entry), at)
    (tmp_path / "a.pth").write_bytes(both + bytes(end))
    assert "twice" in refusal(tmp_path / "a.pth")


def test_a_file_that_changes_is_noticed(tmp_path: Path):
    path = writer.save_torch(tmp_path / "a.pth", ARRAYS)
    file = TorchFile(path)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    with pytest.raises(CheckpointError, match="changed while"):
        file.read("single")
    file.close()


def test_an_unpacked_storage_that_is_a_device_is_refused(tmp_path: Path):
    folder = writer.save_torch(tmp_path / "a", {"a": ARRAYS["single"]}, form="folder")
    (folder / "data/0").unlink()
    (folder / "data/0").symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match="not a regular file"):
        opened(folder)


def test_refused_files_are_let_go(tmp_path: Path):
    before = len(list(Path("/proc/self/fd").iterdir()))
    for case, (raw, _) in LYING_ZIPS.items():
        (tmp_path / "a.pth").write_bytes(raw)
        with pytest.raises(BadHeader if case != "x" else CheckpointError) as _:
            try:
                opened(tmp_path / "a.pth")
            except UnsupportedModel as error:
                raise BadHeader from error
    assert len(list(Path("/proc/self/fd").iterdir())) == before


GOLDEN = Path(__file__).parents[1] / "golden/torch.zip"


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """What torch saved, and its values."""
    with zipfile.ZipFile(GOLDEN) as file:
        file.extractall(tmp_path)
    with np.load(tmp_path / "values.npz") as file:
        return tmp_path, dict(file)


def test_files_that_torch_saved(saved: tuple[Path, dict[str, np.ndarray]]):
    folder, values = saved
    found = opened(folder / "saved.pth")
    assert found.keys() == values.keys()
    for name, value in found.items():
        np.testing.assert_array_equal(value.astype(np.float32), values[name], err_msg=name)
    dtypes = {name: found[name].dtype.name for name in ("half", "brain", "signed", "scalar")}
    assert list(dtypes.values()) == ["float16", "bfloat16", "int8", "float32"]
    file = TorchFile(folder / "saved.pth")
    assert file.tensors["tied"] == file.tensors["half"]
    part = file.read_part("transposed", (slice(2, 5), slice(1, 4)))
    np.testing.assert_array_equal(part, values["transposed"][2:5, 1:4])
    file.close()
    assert "torch before 1.6" in refusal(folder / "older.pth")


def test_the_unpacked_folder_of_a_file_that_torch_saved(saved: tuple[Path, dict[str, np.ndarray]]):
    folder, values = saved
    with zipfile.ZipFile(folder / "saved.pth") as file:
        file.extractall(folder / "unpacked")
    for name, value in opened(folder / "unpacked/saved").items():
        np.testing.assert_array_equal(value.astype(np.float32), values[name], err_msg=name)
