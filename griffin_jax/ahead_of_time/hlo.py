"""The operations of a compiled program, read from its text, with their counts and bytes."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%([\w.\-]+) = (.*?) ([\w\-]+)\((.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%([\w.\-]+) \(")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16}

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# Names for what is there already, or for what other instructions do.
_FREE = (
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
    "partition-id",
    "replica-id",
    "after-all",
)
_PICKS = ("dynamic-slice", "slice", "gather")
_WRITES = ("dynamic-update-slice", "scatter")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction of a computation.

    Attributes:
      name: Unique in the program.
      type: The type of its result, as written: "bf16[16,4096]{1,0:T(8,128)(2,1)S(1)}".
      opcode: Such as "fusion".
      operands: Names of instructions.
      attributes: What stands behind the operands.
      argument: What stands in the place of operands, such as a constant's value.
    """

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    argument: str

    def called(self, attribute: str) -> str | None:
        """Returns the computation that an attribute such as "body" names."""
        found = re.search(rf"\b{attribute}=%([\w.\-]+)", self.attributes)
        return found and found.group(1)


@dataclasses.dataclass(frozen=True)
class Collective:
    """A kind of communication, as often as the program runs it on each device.

    Attributes:
      count: Times.
      num_bytes: The bytes of the results of all of them, on one device.
    """

    count: int = 0
    num_bytes: int = 0


class Module:
    """A compiled program, from `jax.stages.Compiled.as_text`."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        current = None
        for line in text.splitlines():
            if (found := _COMPUTATION.match(line)) and line.rstrip().endswith("{"):
                current = self.computations.setdefault(found.group(2), {})
                self.entry = found.group(2) if found.group(1) else self.entry
            elif current is not None and (instruction := _parse(line)):
                current[instruction.name] = instruction

    def executed(self) -> Iterator[tuple[Instruction, dict[str, Instruction], int]]:
        """Yields instructions that run, with their computation and how often they do.

        Loops count as often as their condition compares with, and once where that is not known.
        What a fusion is made of is not listed.
        """
        yield from self._executed(self.entry, 1)

    def _executed(self, computation, times):
        instructions = self.computations[computation]
        for instruction in instructions.values():
            yield instruction, instructions, times
            if instruction.opcode == "while":
                turns = self.trip_count(instruction)
                yield from self._executed(instruction.called("body"), times * turns)
            elif instruction.opcode == "conditional":
                yield from self._executed(max(self._branches(instruction), key=self._size), times)
            elif instruction.opcode == "call":
                yield from self._executed(instruction.called("to_apply"), times)

    def _branches(self, instruction):
        listed = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
        if listed:
            return _NAME.findall(listed.group(1))
        return [instruction.called("true_computation"), instruction.called("false_computation")]

    def _size(self, computation):
        return len(self.computations[computation])

    def trip_count(self, loop: Instruction) -> int:
        """Returns how often a loop turns: the constant that its condition compares with, or else
        1.
        """
        condition = self.computations[loop.called("condition")]
        for instruction in condition.values():
            if instruction.opcode != "compare":
                continue
            for name in instruction.operands:
                operand = condition[name]
                if operand.opcode == "constant" and operand.argument.isdigit():
                    return max(int(operand.argument), 1)
        return 1

    def collectives(self) -> dict[str, Collective]:
        """Returns what the devices tell each other, by kind."""
        found = {}
        for instruction, _, times in self.executed():
            if kind := self._collective(instruction):
                before = found.get(kind, Collective())
                size = array_bytes(_result(instruction), everywhere=True)
                found[kind] = Collective(before.count + times, before.num_bytes + times * size)
        return found

    def _collective(self, instruction):
        """Returns the kind of an instruction that is a collective, or None.

        The TPU's compiler makes fusions of some: of a sum and the picking of each device's part of
        it, and of what runs beside products, where the last of several fusions stands for all.
        """
        kind = instruction.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            return kind
        body = instruction.called("calls") if instruction.opcode == "fusion" else None
        if body and body.startswith("all-reduce-scatter"):
            return "reduce-scatter"
        if body and instruction.name.startswith("async-collective-done"):
            kinds = (x.opcode for x in self.computations[body].values())
            return next((kind for kind in kinds if kind in COLLECTIVES), None)
        return None

    def memory_traffic(self, instruction: Instruction, scope: dict[str, Instruction]) -> int:
        """Returns the bytes that an instruction reads from the device's main memory and writes to it.

        Of what it takes slices, the slices count; where it writes into an array, what it writes.
        A kernel counts one layer of what is stacked over layers.
        """
        opcode = instruction.opcode
        if opcode in _FREE or opcode.endswith("-done"):
            return 0
        types = [scope[name].type for name in instruction.operands if name in scope]
        result = array_bytes(instruction.type)
        if opcode == "fusion":
            return self._fusion_traffic(instruction, types, result)
        if opcode.endswith("-start"):
            return sum(map(array_bytes, types)) + array_bytes(_result(instruction))
        if opcode in _PICKS:
            return min(array_bytes(types[0]), 2 * result)
        if opcode == "dynamic-update-slice":
            return 2 * array_bytes(types[1])
        if opcode == "custom-call":
            return result + sum(map(_one_layer, types))
        return result + sum(map(array_bytes, types))

    def _fusion_traffic(self, fusion, types, result):
        total, written = 0, None
        for index, type in enumerate(types):
            users = self._users(fusion, index)
            if users and all(user.opcode in _PICKS for user, _, _ in users):
                picked = sum(array_bytes(user.type, everywhere=True) for user, _, _ in users)
                total += min(array_bytes(type), picked)
            elif users and all(u.opcode in _WRITES and not place for u, place, _ in users):
                written = sum(_update_bytes(user, body) for user, _, body in users)
            else:
                total += array_bytes(type)
        return total + (result if written is None else min(result, written))

    def _users(self, fusion, index):
        """Returns what uses an operand of a fusion in the end, as which operand, and in which
        computation.
        """
        body = self.computations.get(fusion.called("calls"), {})
        same = {
            x.name for x in body.values() if x.opcode == "parameter" and x.argument == str(index)
        }
        found = []
        for instruction in body.values():  # which stand in the order in which they depend
            for place, operand in enumerate(instruction.operands):
                if operand not in same:
                    continue
                if instruction.opcode == "bitcast":
                    same.add(instruction.name)
                elif instruction.opcode == "fusion":
                    found += self._users(instruction, place)
                else:
                    found.append((instruction, place, body))
        return found


def _update_bytes(user, body):
    update = user.operands[1 if user.opcode == "dynamic-update-slice" else -1]
    return array_bytes(body[update].type, everywhere=True)


def _result(instruction):
    """Returns the type of a result; of an asynchronous start, that of what it brings."""
    if not instruction.opcode.endswith("-start") or not instruction.type.startswith("("):
        return instruction.type
    arrays = [match.group(0) for match in _ARRAY.finditer(instruction.type)]
    return arrays[1] if len(arrays) > 1 else arrays[0]


def _one_layer(type):
    """Returns the bytes of an operand of a kernel; of [layers, a, b], those of one layer."""
    dimensions = _ARRAY.match(type)
    if dimensions is None:
        return 0
    sizes = [int(n) for n in dimensions.group(2).split(",") if n]
    return array_bytes(type) // (sizes[0] if len(sizes) == 3 else 1)


@functools.lru_cache(maxsize=100_000)
def array_bytes(type: str, everywhere: bool = False) -> int:
    """Returns the bytes of the arrays of a type that lie in main memory, or anywhere."""
    total = 0
    for dtype, dimensions, layout in _ARRAY.findall(type):
        if not everywhere and re.search(r"S\([1-9]", layout or ""):
            continue
        digits = re.search(r"\d+", dtype)
        bits = _BITS.get(dtype) or (int(digits.group()) if digits else 0)
        total += math.prod(int(n) for n in dimensions.split(",") if n) * bits // 8
    return total


def _parse(line):
    found = _INSTRUCTION.match(line)
    if found is None:
        return None
    name, type, opcode, rest = found.groups()
    depth, end = 1, len(rest)
    for place, character in enumerate(rest):
        depth += (character == "(") - (character == ")")
        if not depth:
            end = place
            break
    inside, attributes = rest[:end], rest[end + 1 :]
    return Instruction(name, type, opcode, tuple(_NAME.findall(inside)), attributes, inside)
