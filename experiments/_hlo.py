"""What a compiled program sends between devices, read from the text of its HLO."""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s16": 2, "u16": 2, "f16": 2, "bf16": 2}
_BYTES |= {"s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16}
_BYTES |= dict.fromkeys(("s8", "u8", "f8e4m3fn", "f8e5m2"), 1)
_BYTES |= dict.fromkeys(("s32", "u32", "f32"), 4)

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_SHAPE = re.compile(r"\b([a-z]+\d*[a-z\d]*)\[([\d,]*)\]")
_CALLED = re.compile(
    r"\b(calls|to_apply|body|condition|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONSTANT = re.compile(r"%?([\w.\-]+) = [su]32\[\]\S* constant\((\d+)\)")
_LESS = re.compile(r"compare\([^,]*, %?([\w.\-]+)\), direction=LT")
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all")
_KINDS += ("collective-permute", "ragged-all-to-all", "collective-broadcast")


class Collective(NamedTuple):
    """Hold the collectives of one kind that run in one place.

    Attributes:
      kind: all-gather, all-reduce, reduce-scatter, all-to-all or collective-permute.
      loops: lengths of the loops around it, from the outside in; None where unknown.
      count: how many there are in the program.
      bytes: of the arrays they gather, sum or send on one device, each of them once.
    """

    kind: str
    loops: tuple[int | None, ...]
    count: int
    bytes: float

    @property
    def runs(self) -> int:
        """How often they run, loops of unknown length counted once."""
        return math.prod(length or 1 for length in self.loops)


def collectives(hlo: str) -> list[Collective]:
    """Return the collectives of a program, those that move most first.

    Args:
      hlo: `compiled.as_text()`, after partitioning.

    >>> text = '''HloModule m
    ...
    ... ENTRY %main (p: f32[8]) -> f32[16] {
    ...   %p = f32[8]{0} parameter(0)
    ...   ROOT %g = f32[16]{0} all-gather(%p), replica_groups={{0,1}}, dimensions={0}
    ... }
    ... '''
    >>> collectives(text)
    [Collective(kind='all-gather', loops=(), count=1, bytes=64)]
    """
    program = _read(hlo)
    # A TPU spreads one collective over several fusions, to hide it behind their work:
    # all have its channel, and the first is outside of the loops that hide the rest.
    distinct: dict[Any, Collective] = {}
    for name, loops in _executed(program, program.entry, ()):
        for channel, kind, size in _sent(name, program.bodies[name]):
            which = (channel or len(distinct), kind, size)
            new = Collective(kind, loops, 1, size)
            old = distinct.setdefault(which, new)
            if len(new.loops) < len(old.loops):
                distinct[which] = new
    places: defaultdict[Any, list[float]] = defaultdict(list)
    for each in distinct.values():
        places[each.kind, each.loops].append(each.bytes)
    found = [
        Collective(kind, loops, len(sizes), sum(sizes))
        for (kind, loops), sizes in places.items()
    ]
    return sorted(found, key=lambda each: -each.bytes * each.runs)


class _Instruction(NamedTuple):
    result: str
    op: str
    rest: str


class _Program(NamedTuple):
    entry: str
    bodies: dict[str, list[_Instruction]]
    lines: dict[str, list[str]]


def _read(hlo: str) -> _Program:
    entry, name = "", ""
    bodies: defaultdict[str, list[_Instruction]] = defaultdict(list)
    lines: defaultdict[str, list[str]] = defaultdict(list)
    for line in hlo.splitlines():
        if head := _COMPUTATION.match(line):
            name = head[2]
            entry = name if head[1] else entry
        elif found := _INSTRUCTION.match(line):
            bodies[name].append(_Instruction(*found.groups()[1:]))
            lines[name].append(line)
    return _Program(entry, bodies, lines)


def _executed(
    program: _Program, name: str, loops: tuple[int | None, ...]
) -> Iterator[tuple[str, tuple[int | None, ...]]]:
    """Yield each computation as often as it is called, with the loops around it."""
    yield name, loops
    for instruction in program.bodies[name]:
        if instruction.op in ("async-update", "async-done"):
            continue  # they name what async-start has called
        called = dict(_CALLED.findall(instruction.rest))
        inside = loops
        if instruction.op == "while":
            inside = (*loops, _length(program, instruction.rest, called["condition"]))
        for names in called.values():
            for each in re.findall(r"[\w.\-]+", names):
                if each in program.bodies:
                    yield from _executed(program, each, inside)


def _length(program: _Program, rest: str, condition: str) -> int | None:
    """Return how often a loop runs: as annotated, or if it counts up to a constant."""
    if told := _TRIPS.search(rest):
        return int(told[1])
    text = "\n".join(program.lines[condition.lstrip("%")])
    constants, less = dict(_CONSTANT.findall(text)), _LESS.search(text)
    limit = constants.get(less[1]) if less else None
    return None if limit is None else int(limit)


def _sent(name: str, body: list[_Instruction]) -> Iterator[tuple[str, str, float]]:
    for instruction in body:
        kind = instruction.op.removesuffix("-start")
        if kind not in _KINDS:
            continue
        sizes = list(map(_size, _SHAPE.findall(instruction.result)))
        # What was started returns its operands too.
        started = kind != instruction.op and kind != "all-reduce"
        # A TPU writes reduce-scatter as a fusion of all-reduce and slice.
        kind = "reduce-scatter" if name.startswith("all-reduce-scatter") else kind
        channel = _CHANNEL.search(instruction.rest)
        size = max(sizes) if started else sum(sizes)
        yield channel[1] if channel else "", kind, size


def _size(shape: tuple[str, str]) -> float:
    dtype, dims = shape
    return math.prod(map(int, filter(None, dims.split(",")))) * _BYTES.get(dtype, 0)
