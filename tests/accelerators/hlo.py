"""Counts in compiled HLO: kernels, loops, host reads, new buffers, bytes that a program moves.

Reads the text of an executable (`Compiled.as_text()`), for GPU or TPU. What the figures mean:

kernels   launches: loops as often as they run, of a conditional one branch
exchanges launches among them in which devices of a mesh exchange bytes: collectives
host      predicates that the host reads: of loops and conditionals outside a GPU's command buffers
writes    new buffers by operation and shape: copies, transposes, unpacked weights
moved     bytes read and written in main memory: slices and in-place updates at their true size, a
          TPU's tiles padded, an opaque kernel (Pallas, a library) with all of its operands, or with
          the bytes that it states if they are fewer

Knows nothing of models and chips.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")  # bf16[16,2048]{1,0:T(8,128)}
LINE = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\(([^)]*)\)(.*)")
COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
SLICES = ("dynamic-slice", "slice", "gather")
UPDATES = {"dynamic-update-slice": 1, "scatter": -1}  # the operand that is written
FREE = frozenset(
    ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier")
)
COLLECTIVES = frozenset(
    ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
)
ON_TPU = "T(8,128)"  # tiles of a TPU's main memory


@dataclass(frozen=True)
class Instruction:
    """One line of HLO: name = shape code(inside)rest."""

    is_root: bool
    name: str
    shape: str
    code: str
    inside: str
    rest: str
    operands: tuple[str, ...]


Computation = dict[str, Instruction]


@dataclass
class Counts:
    """The figures of a program or of a part of it."""

    kernels: int = 0
    loops: int = 0
    conditionals: int = 0
    sorts: int = 0
    exchanges: int = 0
    host: int = 0
    moved: int = 0
    writes: Counter[tuple[str, str]] = field(default_factory=Counter)  # bytes by code and shape
    largest: dict[tuple[str, str], int] = field(default_factory=dict)  # the same, of one buffer

    def add(self, other: "Counts", times: int = 1) -> None:
        """Add another part that runs so many times."""
        for name in ("kernels", "loops", "conditionals", "sorts", "exchanges", "host", "moved"):
            setattr(self, name, getattr(self, name) + times * getattr(other, name))
        for key, amount in other.writes.items():
            self.writes[key] += times * amount
        for key, amount in other.largest.items():
            self.largest[key] = max(self.largest.get(key, 0), amount)

    def large_writes(self, least: int) -> dict[tuple[str, str], int]:
        """Return the new buffers of at least so many bytes each."""
        return {
            key: amount
            for key, amount in self.writes.items()
            if amount > 0 and self.largest[key] >= least
        }


def size_of(shape: str, *, everywhere: bool = False) -> int:
    """Return the bytes of a shape in main memory, padded to a TPU's tiles.

    `everywhere` counts arrays in other memories (VMEM), too.
    """
    total = 0
    for kind, sizes, layout in ARRAY.findall(shape):
        bits = int((re.search(r"\d+", kind) or "8")[0])
        dims = [int(one) for one in sizes.split(",") if one]
        if tile := re.search(r"T\((\d+),(\d+)\)", layout):
            for place, unit in zip(
                layout.split(":")[0].split(","), (int(tile[2]), int(tile[1])), strict=False
            ):
                dims[int(place)] = -(-dims[int(place)] // unit) * unit
        if everywhere or not re.search(r"S\(\d", layout):
            total += math.prod(dims) * (bits if "E(4)" in layout else max(bits, 8)) // 8
    return total


class Reading:
    """The counts of one executable."""

    def __init__(
        self,
        text: str,
        *,
        trips: tuple[int, ...] = (1,),
        dearest: bool = False,
        in_graphs: frozenset[str] = frozenset(),
        live: Mapping[str, float] | None = None,
    ) -> None:
        """Read the HLO of an executable.

        `trips`: how often loops of unknown length run, by nesting depth. `dearest`: a conditional
        takes its dearest branch, else its cheapest. `in_graphs`: loops and conditionals inside a
        GPU's command buffers. `live`: of operands of opaque kernels with this shape, the share
        that is read.
        """
        self._trips, self._dearest, self._in_graphs = trips, dearest, in_graphs
        self._live = live or {}
        self._reads_predicates = ON_TPU not in text  # a TPU reads its predicates by itself
        self._parts: dict[str, Computation] = {}
        entry: Computation = {}
        for line in text.splitlines():
            if found := COMPUTATION.match(line):
                part = self._parts[found[2]] = {}
                entry = part if found[1] else entry
            elif found := LINE.match(line):
                root, name, *fields = found.groups()
                operands = tuple(re.findall(r"%([\w.\-]+)", fields[2]))
                part[name] = Instruction(bool(root), name, *fields, operands)
        self.counts = self._total(entry, 0)

    def _total(self, part: Computation, depth: int) -> Counts:
        total = Counts()
        for each in part.values():
            total.add(self._one(each, part, depth))
        return total

    def _one(self, each: Instruction, part: Computation, depth: int) -> Counts:
        if each.code == "while":
            return self._loop(each, depth)
        if each.code in ("conditional", "call"):
            return self._branches(each, depth)
        if each.code in FREE or each.code.endswith(("-done", "-update")):
            return Counts()
        moved, new = self._traffic(each, part)
        what = each.code
        if each.code == "fusion":
            what += f" of {root_of(self._called(each, 'calls')[0]).code}"
        counts = Counts(kernels=1, moved=moved, sorts=int("sort" in what))
        counts.exchanges = int(each.code.removesuffix("-start") in COLLECTIVES)
        counts.writes[what, each.shape] = counts.largest[what, each.shape] = new
        return counts

    def _loop(self, each: Instruction, depth: int) -> Counts:
        test = self._called(each, "condition")[0]
        said = re.search(r'known_trip_count":\{"n":"(\d+)"', each.rest)
        root = root_of(test)
        bound = test.get(root.operands[-1]) if root.code == "compare" else None
        in_test = bound.inside if bound is not None and bound.code == "constant" else 0
        known = int(said[1]) if said else int(in_test)
        times = known or self._trips[min(depth, len(self._trips) - 1)]
        total = Counts(loops=1)
        if self._reads_predicates and not known and each.name not in self._in_graphs:
            total.host = times + 1
        total.add(self._total(self._called(each, "body")[0], depth + (not known)), times)
        total.exchanges += times * self._total(test, depth).exchanges
        return total

    def _branches(self, each: Instruction, depth: int) -> Counts:
        names = "branch_computations|true_computation|to_apply"
        ways = self._called(each, names) + self._called(each, "false_computation")
        choose: Callable[..., Counts] = max if self._dearest else min
        chosen = choose((self._total(way, depth) for way in ways), key=lambda way: way.moved)
        if each.code == "call":
            return chosen
        by_host = self._reads_predicates and each.name not in self._in_graphs
        total = Counts(conditionals=1, host=int(by_host))
        total.add(chosen)
        return total

    def _called(self, each: Instruction, word: str) -> list[Computation]:
        found = re.search(f"(?:{word})" + r"=(\{[^}]*\}|%?[\w.\-]+)", each.rest)
        return [self._parts[name] for name in re.findall(r"[\w.\-]+", found[1])] if found else []

    def _traffic(self, each: Instruction, part: Computation) -> tuple[int, int]:
        """Return the bytes that a kernel moves, and those that it writes to a new buffer."""
        shapes = [part[name].shape for name in each.operands]
        sizes, new = [size_of(shape) for shape in shapes], size_of(each.shape)
        if each.code.removesuffix("-start") in COLLECTIVES:
            if each.code.endswith("-start") and each.code != "all-reduce-start":
                new = max(new - sum(sizes), 0)  # the shape names the operands, too
            return new + sum(sizes), new
        if each.code.endswith("-start"):  # between a TPU's memories: source, target, ...
            return self._transfer(each)
        if each.code == "custom-call":
            sizes = [
                int(size * self._live.get(without_layout(shape), 1.0))
                for size, shape in zip(sizes, shapes, strict=True)
            ]
            kept = aliased(each, part)
            moved = sum(sizes) + new - kept
            stated = re.search(r'"bytes_accessed":"?(\d+)', each.rest)  # a kernel's own estimate
            return min(moved, int(stated[1])) if stated else moved, new - kept
        if each.code in UPDATES:  # in place
            return 2 * (sum(sizes) - new), 0
        if each.code != "fusion":
            return new + (new if each.code in SLICES else sum(sizes)), new
        return self._fusion(each, sizes)

    def _transfer(self, each: Instruction) -> tuple[int, int]:
        ends = [found[0] for found in ARRAY.finditer(each.shape)][:2]
        amount = min(size_of(end, everywhere=True) for end in ends)
        target = ends[each.code != "copy-start"]  # copy-start names its target first
        return sum(amount for end in ends if size_of(end)), amount if size_of(target) else 0

    def _fusion(self, each: Instruction, sizes: list[int]) -> tuple[int, int]:
        body = self._called(each, "calls")[0]
        root = root_of(body)
        outs = [body[name] for name in root.operands] if root.code == "tuple" else [root]
        outs = [root_of(body, out) for out in outs]
        new = sum(size_of(out.shape) for out in outs if out.code not in UPDATES)
        written = sum(
            size_of(body[out.operands[UPDATES[out.code]]].shape)
            for out in outs
            if out.code in UPDATES
        )
        inputs = (one for one in body.values() if one.code == "parameter")
        read = sum(self._read(body, one.name, sizes[int(one.inside)]) for one in inputs)
        return new + written + read, new

    def _read(self, body: Computation, name: str, whole: int) -> int:
        """Return the bytes that a fusion reads of one operand."""
        amount = 0
        for each in users_of(body, name):
            if each.code in ("bitcast", "fusion"):
                inner = (self._called(each, "calls") or [{}])[0]
                at = str(each.operands.index(name))
                own = [
                    one.name
                    for one in inner.values()
                    if one.code == "parameter" and one.inside == at
                ]
                within = self._read(inner, own[0], whole) if own else 0
                amount += within or self._read(body, each.name, whole)  # or it only renames
            elif each.operands[0] != name or each.code not in (*SLICES, *UPDATES):
                return whole
            elif each.code in SLICES:
                amount += size_of(each.shape, everywhere=True)
        return min(whole, amount)


def users_of(body: Computation, name: str) -> Iterator[Instruction]:
    """Yield the instructions that have this operand."""
    return (each for each in body.values() if name in each.operands)


def root_of(part: Computation, each: Instruction | None = None) -> Instruction:
    """Return the result of a computation, or the instruction that does more than rename it."""
    each = each or next(one for one in part.values() if one.is_root)
    return root_of(part, part[each.operands[0]]) if each.code == "bitcast" else each


def without_layout(shape: str) -> str:
    """Return a shape without its layout: bf16[16,8,4096,64]."""
    return re.sub(r"\{[^}]*\}", "", shape)


def aliased(each: Instruction, part: Computation) -> int:
    """Return the bytes of the operands that an opaque kernel updates in place."""
    found = re.search(r"output_to_operand_aliasing=\{(.*?\))\}", each.rest)
    places = re.findall(r"\((\d+), ?\{\}\)", found[1]) if found else []
    return sum(size_of(part[each.operands[int(place)]].shape) for place in places)


def in_graphs(thunks: str, names: str) -> frozenset[str]:
    """Return the loops and conditionals that run inside CUDA graphs.

    `thunks` is XLA's dump of the thunk sequence, `names` its dump of their names.
    """
    known = dict(re.findall(r'annotation: "(.*)"\s+thunk_id: (\d+)', names))
    inside: set[str] = set()
    start = math.inf  # indentation of the command buffer that the present line lies in
    for indent, number, kind in re.findall(r"^( *)0*(\d+): (k\w+)", thunks, re.M):
        if len(indent) <= start:
            start = len(indent) if kind == "kCommandBuffer" else math.inf
        inside |= {name for name, its in known.items() if its == number and len(indent) > start}
    return frozenset(inside)
