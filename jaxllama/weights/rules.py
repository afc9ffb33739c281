"""Rules: which tensors of a file become which of our weights, and how; and the way back.

A format's table maps our paths to rules. A rule is data: shapes are known before any value is
read, a part of a weight needs only parts of the tensors, and every rule can be reversed. Called by
`base.py`, which reads with them, and by exports. Knows no file format.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import TypeVar

from jaxllama.errors import BrokenPlugin
from jaxllama.model.params import Leaf
from jaxllama.weights.layout import (
    Step,
    arrange,
    arrange_part,
    arranged_shape,
    inverted,
    sources,
)
from jaxllama.weights.stored import (
    Index,
    Shape,
    Stored,
    bounded,
    concatenate,
    part_of,
    shape_of,
    stack,
    unstack,
    whole,
)

T = TypeVar("T")
ReadPart = Callable[[str, Index], Stored]  # name of a tensor in the file, wanted part


class Join(ABC):
    """A way to make one tensor of several tensors in a file."""

    @abstractmethod
    def apply(self, parts: Sequence[Stored]) -> Stored:
        """Join tensors, or the parts of them that `sources` selects, to one tensor, in order."""

    @abstractmethod
    def shapes(self, shape: Shape, count: int) -> list[Shape]:
        """Return the shapes of the `count` tensors whose joined tensor has the shape `shape`."""

    @abstractmethod
    def sources(self, index: Index, shape: Shape, count: int) -> dict[int, Index]:
        """Return which tensors part `index` of the joined tensor needs, and which part of each.

        The keys of the result are the tensors' positions, from 0 on. `index` and `shape` are those
        of the joined tensor, `count` is the number of tensors.
        """

    @abstractmethod
    def split(self, stored: Stored, count: int) -> list[Stored]:
        """Split a joined tensor into its `count` parts again; the inverse of `apply`."""


@dataclass(frozen=True)
class Concatenate(Join):
    """Tensors of equal size, one after the other along an axis: shards of a matrix."""

    axis: int = 0

    def apply(self, parts: Sequence[Stored]) -> Stored:
        """Concatenate `parts`, the tensors of the shards in order, along `self.axis`."""
        return concatenate(parts, self.axis)

    def shapes(self, shape: Shape, count: int) -> list[Shape]:
        """Return the shapes of `count` parts of a tensor of shape `shape`, cut along `self.axis`.

        If the size of the axis is no multiple of `count`, the first parts are larger by one.
        """
        ranges = self._ranges(shape, count)
        return [with_axis(shape, self.axis, stop - start) for start, stop in ranges]

    def sources(self, index: Index, shape: Shape, count: int) -> dict[int, Index]:
        """Return which tensors part `index` of the joined tensor needs, and which part of each.

        The keys of the result are the tensors' positions, from 0 on. `index` and `shape` are those
        of the joined tensor, `count` is the number of tensors.
        """
        wanted = index[self.axis]
        found = {}
        for number, (start, stop) in enumerate(self._ranges(shape, count)):
            first, last = max(wanted.start, start), min(wanted.stop, stop)
            if first < last:
                found[number] = with_axis(index, self.axis, slice(first - start, last - start))
        return found

    def split(self, stored: Stored, count: int) -> list[Stored]:
        """Cut `stored` into `count` parts of (nearly) equal size along `self.axis`."""
        shape = shape_of(stored)
        cuts = (slice(*ends) for ends in self._ranges(shape, count))
        return [part_of(stored, with_axis(whole(shape), self.axis, each)) for each in cuts]

    def _ranges(self, shape: Shape, count: int) -> list[tuple[int, int]]:
        size, more = divmod(shape[self.axis], count)
        ends = accumulate((size + (number < more) for number in range(count)), initial=0)
        return list(pairwise(ends))


@dataclass(frozen=True)
class Stack(Join):
    """Tensors of equal shape along a new first axis: the experts of a layer."""

    def apply(self, parts: Sequence[Stored]) -> Stored:
        """Stack the tensors `parts` along a new first axis."""
        return stack(parts)

    def shapes(self, shape: Shape, count: int) -> list[Shape]:
        """Return `shape` without its first axis, once for each of the `count` tensors."""
        return [shape[1:]] * count

    def sources(self, index: Index, shape: Shape, count: int) -> dict[int, Index]:
        """Return which tensors part `index` of the stack needs, and which part of each.

        The keys of the result are the tensors' positions, from 0 on. `index` and `shape` are those
        of the stacked tensor, `count` is the number of tensors.
        """
        del shape, count
        return dict.fromkeys(range(index[0].start, index[0].stop), index[1:])

    def split(self, stored: Stored, count: int) -> list[Stored]:
        """Return each of the `count` slices along the first axis of `stored`."""
        del count
        return unstack(stored)


@dataclass(frozen=True)
class Copies(Join):
    """Equal tensors, of which the first is read: norms that every shard repeats."""

    def apply(self, parts: Sequence[Stored]) -> Stored:
        """Return the first tensor of `parts`; the others are copies of it."""
        return parts[0]

    def shapes(self, shape: Shape, count: int) -> list[Shape]:
        """Return a list with `shape` `count` times: all tensors have the same shape."""
        return [shape] * count

    def sources(self, index: Index, shape: Shape, count: int) -> dict[int, Index]:
        """Say that only part `index` of tensor 0 is needed: return {0: index}."""
        del shape, count
        return {0: index}

    def split(self, stored: Stored, count: int) -> list[Stored]:
        """Return a list with `stored` `count` times."""
        return [stored] * count


@dataclass(frozen=True)
class TensorPart:
    """A range along one axis of a tensor that holds several of our weights."""

    axis: int
    start: int
    stop: int


@dataclass(frozen=True)
class Rule:
    """The origin of one weight: tensors of a file, joined or cut, then converted by steps.

    `theirs` is the name of one tensor, or the names of several and their `join`. Of several weights
    from one tensor, each rule has the same `theirs` and a `cut`; together they use all of it.
    `steps` convert the result to canonical layout. In a format's table both the key and the names
    hold `{i}` in place of the layer's number.
    """

    theirs: str | tuple[str, ...]
    steps: tuple[Step, ...] = ()
    join: Join | None = None
    cut: TensorPart | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for an impossible combination of fields.

        Impossible are several tensor names without a `join`, and a `join` together with a `cut`.
        """
        if (len(self.names) > 1 and self.join is None) or (self.join and self.cut):
            raise ValueError(
                f"the rule of {self.names} has join {self.join} and cut {self.cut}; expected a "
                f"join for several names, and not both a join and a cut"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the tensors in the file that this weight is made from."""
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs


def numbered(name: str, count: int) -> tuple[str, ...]:
    """Return the names made of `name` by replacing `{n}` by 0 to `count` - 1.

    `{n}` stands for the number of an expert or of a shard.
    """
    return tuple(name.replace("{n}", str(number)) for number in range(count))


def expand(table: Mapping[str, Rule], layers: int) -> dict[str, Rule]:
    """Return a copy of `table` with one row per layer in place of each row with `{i}`.

    `table` maps parameter paths to rules; `{i}` is replaced by the layer's number, from 0 on.
    """
    full: dict[str, Rule] = {}
    for path, rule in table.items():
        if "{i}" not in path:
            full[path] = rule
            continue
        for i in range(layers):
            names = tuple(name.replace("{i}", str(i)) for name in rule.names)
            theirs = names if len(names) > 1 else names[0]
            full[path.replace("{i}", str(i))] = replace(rule, theirs=theirs)
    return full


def read_weight(rule: Rule, shape: Shape, index: Index | None, read: ReadPart) -> Stored:
    """Read a weight, or part `index` of it (None: all), in the layout that the model has.

    `rule` names its tensors in the file, `shape` is that of the whole weight, and `read` reads a
    part of one tensor; only parts that are needed are read.
    """
    before = arranged_shape(shape, inverted(rule.steps))
    wanted = whole(shape) if index is None else bounded(index, shape)
    needed, places = sources(wanted, rule.steps, before)
    if rule.join is not None:
        parts = rule.join.sources(needed, before, len(rule.names))
        part = rule.join.apply([read(rule.names[i], each) for i, each in parts.items()])
    else:
        part = read(rule.names[0], inside(needed, rule.cut))
    return arrange_part(part, rule.steps, places)


def restore(
    table: Mapping[str, Rule], paths: Iterable[str], read: Callable[[str], Stored]
) -> Iterator[tuple[str, Stored]]:
    """Yield name and value of every tensor to write to a file, computed from the model's weights.

    `table` has the file's rules by parameter path, `paths` are the weights to write, and
    `read(path)` returns a weight in the layout of the model.
    """
    for names, members in by_tensor(table, paths).items():
        first = table[members[0]]
        used = members if first.cut else members[:1]
        pieces = [arrange(read(path), inverted(table[path].steps)) for path in used]
        tensor = concatenate(pieces, first.cut.axis) if first.cut else pieces[0]
        parts = [tensor] if first.join is None else first.join.split(tensor, len(names))
        yield from zip(names, parts, strict=True)


def stored_shapes(table: Mapping[str, Rule], leaves: Mapping[str, Leaf]) -> dict[str, Shape]:
    """Return the shape that every tensor of the file must have, by the tensor's name.

    `table` has the file's rules, `leaves` the weights' shapes in the model, both by parameter path.
    Raises BrokenPlugin if the parts that the rules cut from a tensor leave gaps, overlap or differ
    in size from the weights.
    """
    expected: dict[str, Shape] = {}
    for names, members in by_tensor(table, leaves).items():
        first = table[members[0]]
        pieces = [
            arranged_shape(leaves[each].shape, inverted(table[each].steps)) for each in members
        ]
        shape = pieces[0]
        if first.cut is not None:
            axis = first.cut.axis
            ends = [0, *accumulate(piece[axis] for piece in pieces)]
            cuts = [table[each].cut for each in members]
            if cuts != [TensorPart(axis, *range_) for range_ in pairwise(ends)]:
                raise BrokenPlugin(
                    f"the rules of {names[0]} cut {cuts}; the weights {', '.join(members)} need "
                    f"axis {axis} cut at {ends}"
                )
            shape = with_axis(shape, axis, ends[-1])
        shapes = [shape] if first.join is None else first.join.shapes(shape, len(names))
        expected |= zip(names, shapes, strict=True)
    return expected


def by_tensor(table: Mapping[str, Rule], paths: Iterable[str]) -> dict[tuple[str, ...], list[str]]:
    """Group parameter paths by the names of the tensors in the file that `table` reads them from.

    Paths that are cut out of one tensor are in the order of their cuts.
    """
    found: dict[tuple[str, ...], list[str]] = {}
    for path in paths:
        if path in table:
            found.setdefault(table[path].names, []).append(path)
    for members in found.values():
        members.sort(key=lambda path: cut.start if (cut := table[path].cut) else 0)
    return found


def inside(index: Index, cut: TensorPart | None) -> Index:
    """Convert `index`, relative to the part `cut` of a tensor, to an index of the whole tensor.

    If `cut` is None, the index is returned unchanged.
    """
    if cut is None:
        return index
    part = index[cut.axis]
    return with_axis(index, cut.axis, slice(cut.start + part.start, cut.start + part.stop))


def with_axis(values: tuple[T, ...], axis: int, value: T) -> tuple[T, ...]:
    """Return a copy of `values`, a shape or an index, with `value` for the axis number `axis`."""
    changed = list(values)
    changed[axis] = value
    return tuple(changed)
