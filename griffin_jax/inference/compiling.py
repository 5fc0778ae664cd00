"""Compiling an engine's programs before they are needed, several at once.

A program is compiled from the shapes of its arguments alone. That takes no memory of the device and
goes on beside the engine's work; the call that needs the program first finds it there.
"""

import concurrent.futures
import functools
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from griffin_jax.inference import prefill
from griffin_jax.inference.decode import Rows, draw_burst, entry_of, insert_row, take
from griffin_jax.inference.drawing import EVERYTHING, Needs, settings_of
from griffin_jax.inference.grammar import words_of
from griffin_jax.inference.reader import Reader
from griffin_jax.inference.row_programs import RowPrograms
from griffin_jax.inference.row_states import fresh_row, lower_read
from griffin_jax.models import Griffin

_MOST_THREADS = 16
# Tokens that texts have room for under an unbounded window, where more is a program of its own.
_TOKENS = 1

Key = tuple[Any, ...]
Program = Callable[[], jax.stages.Lowered]


class Ahead:
    """What an engine has compiled ahead, which it runs as long as that suffices."""

    def __init__(self, model: Griffin, params: dict, burst: int, rows: RowPrograms, reader: Reader):
        """Begins with nothing.

        Args:
          model: The engine's model.
          params: Its parameters.
          burst: Steps in one dispatch at most.
          rows: Is told which programs there are for rows.
          reader: Is told how long the calls are that have been compiled.
        """
        self._given, self._burst = (model, params), burst
        self._rows, self._reader = rows, reader
        self._compiled: set[Key] = set()

    def compile(
        self,
        texts: Sequence[int] | None,
        longest: int | None,
        sampling: bool,
        everything: bool,
        wanted: Callable[[], bool],
        threads: int | None,
    ) -> None:
        """Compiles what is not there yet; `wanted` as for `compile_all`, the rest as for
        `Engine.compile_ahead`.
        """
        rows, reader = self._rows, self._reader
        first = not self._compiled
        rows.ahead = Needs(draws=True, filters=True) if sampling else Needs()
        most = rows.sizes([rows.slots])
        sizes = rows.sizes(range(1, rows.slots + 1) if texts is None else texts)
        of_rows = functools.partial(programs_of_rows, *self._given, self._burst)
        programs = dict(of_rows(rows.ahead, sizes, rows.compiled))
        programs |= programs_of_calls(*self._given, reader.calls(max(sizes), longest))
        if everything:
            programs |= of_rows(EVERYTHING, most, ())
        left = {key: one for key, one in programs.items() if key not in self._compiled}
        compile_all(left, wanted, threads)
        self._compiled |= left.keys()
        rows.compiled = tuple(sorted({*rows.compiled, *sizes}))
        if longest is None or first:
            reader.longest = longest
        elif reader.longest is not None:
            reader.longest = max(reader.longest, longest)


def programs_of_rows(
    model: Griffin,
    params: dict,
    burst: int,
    needs: Needs,
    sizes: Sequence[int],
    more: Sequence[int],
) -> Iterator[tuple[Key, Program]]:
    """Yields what pools of these numbers of rows need, each program under a key of its own.

    Args:
      model: The model.
      params: Its parameters.
      burst: Steps in one dispatch at most.
      needs: What the programs are to do.
      sizes: The numbers of rows.
      more: Further ones, from and to which pools grow and shrink.
    """
    vocab_size = model.config.vocab_size
    entry = entry_of(0, 0, 0, np.zeros(2, np.uint32), (), settings_of(None)).replace(
        state=_shapes(fresh_row(model, params, _TOKENS)),
        counts=np.zeros(vocab_size, np.int32) if needs.penalties else None,
        bias=np.zeros(vocab_size, np.float32) if needs.bias else None,
    )
    rows = {size: _shape_of_rows(model, params, size, needs) for size in {*sizes, *more}}
    for size in sizes:
        wanted, steps = np.ones(size, bool), np.int32(0)
        masks = None
        if needs.masks:
            masks = prefill.put(params, np.zeros((size, words_of(vocab_size)), np.uint32))
        how = model, burst, needs, (), params
        yield (
            ("draw", size, needs),
            functools.partial(draw_burst.lower, *how, rows[size], wanted, steps, masks),
        )
    for size in sizes:
        yield (
            ("insert", size, needs.penalties, needs.bias),
            functools.partial(insert_row.lower, rows[size], np.int32(0), entry),
        )
    for before in rows:
        for size in rows:
            if before != size and (before in sizes or size in sizes):
                index, valid = np.zeros(size, np.int32), np.ones(size, bool)
                yield (
                    ("take", before, size),
                    functools.partial(take.lower, rows[before], index, valid),
                )


def programs_of_calls(
    model: Griffin, params: dict, calls: Sequence[tuple[int, int]]
) -> Iterator[tuple[Key, Program]]:
    """Yields those that read so many texts in a call of such a length, for (texts, length) of each."""
    row = _shapes(fresh_row(model, params, _TOKENS))
    for texts, length in calls:
        program = functools.partial(lower_read, model, params, row, texts, length)
        yield ("read", texts, length), program


def compile_all(
    programs: Mapping[Key, Program], wanted: Callable[[], bool], threads: int | None
) -> None:
    """Compiles programs, a few at once.

    Args:
      programs: What lowers each.
      wanted: Whether to go on; asked before each.
      threads: How many at once; None for as many as there are cores.
    """

    # Python's own lock has one thread trace at a time. In turns, the first program is at the
    # compiler soon, whatever threads wait.
    tracing = threading.Lock()

    def one(program):
        if wanted():
            with tracing:
                lowered = program()
            lowered.compile()

    # Several processes must compile in one order, as they talk to each other on the way.
    threads = threads or min(os.cpu_count() or 1, _MOST_THREADS)
    threads = threads if jax.process_count() == 1 else 1
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        compiling = [pool.submit(one, program) for program in programs.values()]
        try:
            for each in concurrent.futures.as_completed(compiling):
                each.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _shape_of_rows(model: Griffin, params: dict, size: int, needs: Needs) -> Rows:
    """Returns the shapes of what `empty_rows` returns, with what is wide, and where arrays lie."""
    where = prefill.companion_sharding(params)
    values = entry_of(0, 0, 0, np.zeros(2, np.uint32), (), settings_of(None))
    values = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((size, *np.shape(x)), x.dtype, sharding=where), values
    )

    def wide(dtype):
        zeros = np.zeros((size, model.config.vocab_size), dtype)
        return _shapes(prefill.put(params, zeros, "batch", "vocabulary"))

    return values.replace(
        state=prefill.shape_of_state(model, params, size, _TOKENS),
        counts=wide(np.int32) if needs.penalties else None,
        bias=wide(np.float32) if needs.bias else None,
    )


def _shapes(arrays: Any) -> Any:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), arrays
    )
