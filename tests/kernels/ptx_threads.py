"""Runs the PTX of a block of threads where there is no GPU: enough of it for what its users write.

All threads take each instruction together, so barriers do nothing, and a race between threads does
not show. Branches skip code for some of them; what loops must not have to.
"""

import re

import jax.numpy as jnp
import numpy as np

_COMPARISONS = {"gt": np.greater, "eq": np.equal, "ne": np.not_equal, "lt": np.less}
_INTEGERS = {
    "add.u32": np.add,
    "sub.u32": np.subtract,
    "mul.lo.u32": np.multiply,
    "mad.lo.u32": lambda a, b, c: a * b + c,
    "and.b32": np.bitwise_and,
    "shl.b32": np.left_shift,
    "shr.u32": np.right_shift,
    "mov.b32": lambda a: a,
    "mov.u32": lambda a: a,
    "mov.f32": lambda a: a,
}
_FLOATS = {
    "add.f32": np.add,
    "sub.f32": np.subtract,
    "mul.f32": np.multiply,
    "neg.f32": np.negative,
    "fma.rn.f32": lambda a, b, c: (a.astype(np.float64) * b + c).astype(np.float32),
    "min.NaN.f32": np.minimum,
    "max.NaN.f32": np.maximum,
    "ex2.approx.ftz.f32": np.exp2,
    "rcp.approx.ftz.f32": np.reciprocal,
    "sqrt.approx.ftz.f32": np.sqrt,
    "rsqrt.approx.ftz.f32": lambda a: np.reciprocal(np.sqrt(a)),
}


def run(text: str, arguments: list[int], shared: np.ndarray, memory: np.ndarray, threads: int):
    """Runs PTX in braces, and changes `shared` and `memory`.

    Args:
      text: The code, whose $0, $1, ... are `arguments`.
      arguments: Numbers, or addresses in bytes from the beginning of `shared` or `memory`.
      shared: uint32[words].
      memory: uint32[words].
      threads: How many there are.
    """
    block = _Block(arguments, {"shared": shared, "global": memory}, threads)
    for statement in text.strip().removeprefix("{").removesuffix("}").split(";"):
        words = statement.split()
        while words and words[0].endswith(":"):
            block.label(words.pop(0)[:-1])
        if words and words[0] != ".reg" and not words[0].startswith("bar."):
            block.step(" ".join(words))


class _Block:
    def __init__(self, arguments, memories, threads):
        self._registers = {
            f"${i}": np.full(threads, v & 0xFFFFFFFF, np.uint32) for i, v in enumerate(arguments)
        }
        self._registers["%tid.x"] = np.arange(threads, dtype=np.uint32)
        self._memories, self._threads = memories, threads
        self._runs, self._until, self._passed = np.ones(threads, bool), None, set()

    def label(self, name):
        self._passed.add(name)
        if name == self._until:
            self._runs, self._until = np.ones(self._threads, bool), None

    def step(self, statement):
        runs = self._runs
        if statement.startswith("@"):
            guard, statement = statement.split(" ", 1)
            holds = self._registers[guard.lstrip("@!")]
            runs = runs & (~holds if "!" in guard else holds)
        operation, rest = statement.split(" ", 1)
        operands = re.findall(r"\{.*?\}|\[.*?\]|[^,\s]+", rest)
        if operation == "bra":
            self._branch(operands[0], runs)
        elif operation.startswith(("ld.", "st.")):
            self._move(operation, operands, runs)
        else:
            self._compute(operation, operands, runs)

    def _branch(self, label, runs):
        if label in self._passed:  # back
            assert not runs.any(), "a loop would go on"
        else:
            assert self._until is None
            self._runs, self._until = self._runs & ~runs, label

    def _value(self, operand):
        if operand in self._registers:
            return self._registers[operand]
        number = int(operand[2:], 16) if operand.startswith("0f") else int(operand, 0)
        return np.full(self._threads, number & 0xFFFFFFFF, np.uint32)

    def _set(self, name, value, runs):
        before = self._registers.get(name)
        self._registers[name] = value.copy() if before is None else np.where(runs, value, before)

    def _move(self, operation, operands, runs):
        memory = self._memories["shared" if "shared" in operation else "global"]
        [place] = [x for x in operands if x.startswith("[")]
        [names] = [x for x in operands if not x.startswith("[")]
        names = names.strip("{}").replace(",", " ").split()
        base, *offset = place.strip("[]").split(" + ")
        address = self._value(base).astype(np.int64) + sum(map(int, offset))
        assert not (address[runs] % (4 * len(names))).any(), "not aligned"
        for index, name in enumerate(names):
            word = address // 4 + index
            if operation.startswith("st."):
                memory[word[runs]] = self._registers[name][runs]
            else:
                self._set(name, memory[np.where(runs, word, 0)], runs)

    def _compute(self, operation, operands, runs):
        name, *rest = operands
        values = [self._value(x) for x in rest]
        floats = [x.view(np.float32) for x in values if x.dtype == np.uint32]
        with np.errstate(all="ignore"):
            if operation.startswith("setp."):
                _, kind, numbers = operation.split(".")
                signed = [x.view(np.int32) for x in values if numbers == "s32"]
                a, b = floats if numbers == "f32" else signed or values
                unordered = kind == "nan"
                found = np.isnan(a) | np.isnan(b) if unordered else _COMPARISONS[kind](a, b)
            elif operation in ("selp.f32", "selp.b64"):
                found = np.where(values[2], values[0], values[1])
            elif operation == "mad.wide.u32":
                found = _INTEGERS["mad.lo.u32"](*values)
            elif operation == "cvt.rn.bf16x2.f32":
                high, low = (np.asarray(jnp.asarray(x, jnp.bfloat16)) for x in floats)
                found = np.stack([low, high], axis=1).view(np.uint32)[:, 0]
            elif operation in _FLOATS:
                found = _FLOATS[operation](*floats).view(np.uint32)
            else:
                found = _INTEGERS[operation](*values)
        self._set(name, found, runs)
