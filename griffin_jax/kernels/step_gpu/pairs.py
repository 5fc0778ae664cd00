"""4-bit weights times one vector, by a table of pairs in shared memory and tensor cores.

A byte of two codes becomes two float16 numbers by one read of a table of 256 such pairs, of which
every bank of shared memory has a copy, so that no lane waits for another. The pairs of two rows are
an operand of a tensor core as they are. Of the eight columns of its product a group of four lanes
needs one, that of its own part of the vector: what else it adds up is thrown away. A group of four
lanes reads a block of 64 weights, whose scale multiplies the block's sum in float32.

The vector comes in float16 too, divided by 16: numbers up to a million fit, larger ones are cut off
there, and from 2.5e-4 on none has less precision than in bfloat16. Codes of NF4 are rounded by up to
2^-11.5 of themselves, those of FP4 by 2^-12; weights in bfloat16 are by up to 2^-8.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from griffin_jax.kernels import triton
from griffin_jax.kernels.packed_matmul_pallas_gpu import LEAVES, lane_codes_asm, lookup, scales_at

WARPS = 8  # of a program, which has a thread for each pair of codes
_BYTES = 256  # of a row that a warp reads in one piece, 8 a lane
_ROWS = 4  # that a warp reads side by side
_SMALLEST_BLOCK = 64
_DIVISOR = 16.0
_LARGEST = 65504.0
_SLOTS = 528  # programs that run at once, four on each of 132 multiprocessors
_TABLE = "griffin_pairs"


def unsupported_reason(weights) -> str | None:
    """Returns the reason why 4-bit weights [out, in] are not supported; None if they are."""
    for weight in weights:
        out, width = weight.shape
        if weight.block_size < _SMALLEST_BLOCK or 512 % weight.block_size:
            return f"4-bit weights in blocks of {weight.block_size} (needs 64, 128, 256 or 512)"
        if out % (WARPS * _ROWS) or width % (2 * _BYTES):
            return f"4-bit weights of {out} x {width} (needs multiples of 32 x 512)"
        if weight.packed.ndim != 2:
            return "4-bit weights whose bytes are not in rows"
        if weight.quant_type != weights[0].quant_type:
            return "4-bit weights of several types"
    return None


def programs(weights) -> tuple[int, int]:
    """Returns the rows of each weight that a program multiplies at a time, and how many times.

    A row is shared by as few warps as fill the multiprocessors, to nine tenths or as far as it goes.
    """
    most = WARPS * _ROWS // len(weights)
    out, width = weights[0].shape
    best = 0.0
    for share in (1, 2, 4):
        if best >= 0.9 or width // (2 * _BYTES) % share:
            break
        count = out * share // most
        rounds = -(-count // _SLOTS)
        filled = count / (rounds * _SLOTS)
        if filled > best:
            best, found = filled, (most // share, rounds if count % rounds == 0 else 1)
    return found


def to_vector(x: jax.Array) -> jax.Array:
    """Returns a vector [n] as `start_matvec` takes it: float16[n], a sixteenth of it, each number
    in its place.
    """
    # As `store` does it, in a form that XLA fuses.
    return _sixteenth(x).reshape(-1, 2, 8).swapaxes(0, 1).reshape(-1)


def store(ref, begin: jax.Array, values: jax.Array) -> None:
    """Writes values [m] to a vector [n] of `start_matvec`, from number `begin` on."""
    number = begin + jnp.arange(values.size, dtype=jnp.int32)
    half, within = lax.div(lax.rem(number, 16), 8), lax.rem(number, 8)
    ref[half * (ref.size // 2) + lax.div(number, 16) * 8 + within] = _sixteenth(values)


def _sixteenth(x):
    x = jnp.clip(x.astype(jnp.float32) / _DIVISOR, -_LARGEST, _LARGEST)
    return x.astype(jnp.float16)


def table(quant_type: str, *, interpret: bool) -> jax.Array:
    """Writes the table to shared memory, as a kernel's first deed; what `start_matvec` returns waits for it.

    Returns:
      Zeros, int16[WARPS, _BYTES], by which that knows that it comes after.
    """
    shape = WARPS, _BYTES
    if interpret:
        return jnp.zeros(shape, jnp.int16)
    return _asm(_table_asm(quant_type), [lax.broadcasted_iota(jnp.int32, shape, 0)])


def start_matvec(
    weights, row, count: int, x_ref, table: jax.Array, *, interpret: bool
) -> Callable[[], list[jax.Array]]:
    """Starts to read rows `row` ... `row + count` of one or two 4-bit weights, to multiply a vector.

    Args:
      weights: 4-bit weights [out, in] of references.
      row: The first row.
      count: How many, what `programs` said.
      x_ref: The vector, as `to_vector` has it.
      table: What `table` returned.
      interpret: Run on any device, slowly.

    Returns:
      A function that reads the vector and returns float32[count] for each weight.
    """
    if interpret:
        return lambda: [_times_plainly(weight, row, count, x_ref) for weight in weights]
    groups = count * len(weights) // _ROWS  # of warps, that share rows
    share = WARPS // groups
    width = weights[0].shape[1] // 2 // share  # bytes of a warp's part of a row
    pieces = width // _BYTES
    each = _ROWS // len(weights)
    rows = [divmod(index, len(weights)) for index in range(_ROWS)]  # of a warp: offset, weight

    def places(piece, lanes):
        """Returns the first row of each warp, and its columns where a piece has so many."""
        warp = lax.broadcasted_iota(jnp.int32, (WARPS, lanes), 0)
        column = lax.broadcasted_iota(jnp.int32, (WARPS, lanes), 1)
        column += (lax.rem(warp, share) * pieces + piece) * lanes
        return row + each * lax.div(warp, share), column

    def load(piece):
        """Returns the bytes of each row, [WARPS, _BYTES].

        Volatile, since the compiler would ask for some only after it has multiplied by others, to
        spare registers, and wait for memory twice.
        """
        first, column = places(piece, _BYTES)
        return [
            triton.load(weights[which].packed.at[first + offset, column], volatile=True)
            for offset, which in rows
        ]

    def load_scales(piece):
        """Returns the scales of each row, [WARPS, blocks]."""
        found = []
        for offset, which in rows:
            weight = weights[which]
            first, block = places(piece, 2 * _BYTES // weight.block_size)
            leaves = {name: getattr(weight, name) for name in LEAVES}
            found.append(scales_at(leaves, weight, first + offset, block))
        return found

    def add(sums, piece, packed, scales):
        shape = WARPS, _BYTES
        register = lax.rem(lax.broadcasted_iota(jnp.int32, shape, 1), 8)
        scale = None
        for index in reversed(range(_ROWS)):
            blocks = scales[index].shape[1]
            own = jnp.broadcast_to(scales[index][:, :, None], (WARPS, blocks, _BYTES // blocks))
            own = own.reshape(shape)
            # A row has two of eight registers.
            scale = own if scale is None else jnp.where(register < 2 * index + 2, own, scale)
        _, column = places(piece, _BYTES)
        # A lane reads its 16 numbers as eight and eight, side by side with other lanes'.
        x = x_ref[column], x_ref[width * share + column]
        return _asm(_times_asm(), [*packed, *x, scale, sums])

    # What is far away is asked for before the table is waited for, scales a piece ahead: they are
    # needed when all else is done.
    packed, *scales = load(0), load_scales(0), load_scales(min(1, pieces - 1))

    def turn(piece, carry):
        sums, scales = carry
        after = load_scales(jnp.minimum(piece + 1, pieces - 1))
        return add(sums, piece, load(piece), scales), after

    def compute():
        sums = add(_asm(_READY, [table]), 0, packed, scales[0])
        # A number of turns that the compiler does not know is 0: it would unroll them and ask for
        # everything at once, at twice the registers.
        last = pieces + lax.shift_right_logical(row, 30)
        sums, _ = lax.fori_loop(1, last, turn, (sums, scales[1]))
        own = _asm(_own_asm(), [sums], jnp.float32).reshape(WARPS, 32 // _ROWS, _ROWS, 8)
        found = own.sum(axis=3).sum(axis=1)
        found = _DIVISOR * found.reshape(groups, share, _ROWS).sum(axis=1)
        if len(weights) == 1:
            return [found.reshape(count)]
        return [y.reshape(count) for y in jnp.split(found.reshape(count, 2), 2, axis=1)]

    return compute


def _times_plainly(weight, row, count, x_ref):
    rows = row + jnp.arange(count)[:, None]
    width = weight.shape[1]
    pairs = x_ref[...].reshape(2, -1, 8).swapaxes(0, 1).reshape(-1, 2).astype(jnp.float32)
    halves = lookup(weight.packed[rows, jnp.arange(width // 2)[None]], weight.quant_type, True)
    high, low = (half.astype(jnp.float16).astype(jnp.float32) for half in halves)
    blocks = width // weight.block_size
    leaves = {name: getattr(weight, name) for name in LEAVES}
    scale = scales_at(leaves, weight, rows, jnp.arange(blocks)[None])
    products = high * pairs[None, :, 0] + low * pairs[None, :, 1]
    return _DIVISOR * (products.reshape(count, blocks, -1).sum(axis=2) * scale).sum(axis=1)


def _asm(text, arguments, result=jnp.int16):
    """Returns PTX of 8 places of [WARPS, _BYTES] at once; a type of n bytes takes 2 n registers.

    So four numbers of float32 come as eight places of int16.
    """
    kinds = ["=&f" if result == jnp.float32 else "=&r"] * (2 * jnp.dtype(result).itemsize)
    for argument in arguments:
        kind = "f" if argument.dtype == jnp.float32 else "r"
        kinds += [kind] * (2 * argument.dtype.itemsize)
    return triton.elementwise_inline_asm(
        text,
        args=arguments,
        constraints=",".join(kinds),
        pack=8,
        result_shape_dtypes=[jax.ShapeDtypeStruct((WARPS, _BYTES), result)],
    )[0]


# The assembly that writes the table returns 0, and so does the one that waits for it. The compiler
# takes all of this assembly for pure: only the zeros that are passed on keep its order.
_READY = "\n".join(["bar.sync 0;", *(f"mov.b32 ${i}, ${_ROWS + i};" for i in range(_ROWS))])


def _own_asm():
    """Returns PTX that puts the sum of row i of a group of four lanes into $0 of its lane i, 0
    elsewhere.

    One of the four lanes has the column that is the group's own, by the group's number.
    """
    lines = [
        "{",
        ".reg .b32 lane, from, row;",
        f".reg .f32 own<{_ROWS}>;",
        ".reg .pred is_row;",
        "mov.u32 lane, %laneid;",
        "and.b32 row, lane, 3;",
        "shr.u32 from, lane, 3;",
        "and.b32 lane, lane, 28;",
        "or.b32 from, from, lane;",
        "mov.f32 $0, 0f00000000;",
    ]
    for i in range(_ROWS):
        lines += [
            f"shfl.sync.idx.b32 own{i}, ${8 + i}, from, 0x1f, 0xffffffff;",
            f"setp.eq.u32 is_row, row, {i};",
            f"selp.f32 $0, own{i}, $0, is_row;",
        ]
    return "\n".join([*lines, *(f"mov.f32 ${i}, 0f00000000;" for i in range(1, 8)), "}"])


def _table_asm(quant_type):
    """Returns PTX that writes the 256 pairs, 32 copies of each side by side; a pair for each
    thread.
    """
    lines = [
        f".shared .align 16 .b32 {_TABLE}[{256 * 32}];",
        "{",
        ".reg .b32 thread, pair, high, low, begin, chunk;",
        *lane_codes_asm(quant_type),
        "mov.u32 thread, %tid.x;",
        # The high half of a byte is the first of its two codes.
        "shr.u32 high, thread, 4;",
        "shfl.sync.idx.b32 high, own0, high, 0x101f, 0xffffffff;",
        "shfl.sync.idx.b32 low, own0, thread, 0x101f, 0xffffffff;",
        "cvt.rn.f16x2.f32 pair, low, high;",
        f"mov.u32 begin, {_TABLE};",
        "mad.lo.u32 begin, thread, 128, begin;",
    ]
    for turn in range(8):
        # Each of eight threads begins at another bank.
        lines += [
            f"add.u32 chunk, thread, {turn};",
            "and.b32 chunk, chunk, 7;",
            "mad.lo.u32 chunk, chunk, 16, begin;",
            "st.shared.v4.b32 [chunk], {pair, pair, pair, pair};",
        ]
    return "\n".join([*lines, *(f"mov.b32 ${i}, 0;" for i in range(_ROWS)), "}"])


def _times_asm():
    """Returns PTX that adds scale * (each row's 16 codes of a lane times the vector's) to the sums.

    First come the sums after, one of each row; then bytes, two words a row, eight pairs of the
    vector, eight scales, two of each row, and the sums before.
    """
    vector = 3 * _ROWS
    scale, before = vector + 8, vector + 16
    lines = [
        "{",
        f".reg .b32 lane, table, place, pair<{8 * _ROWS}>;",
        f".reg .f32 sum<{2 * _ROWS}>;",
        ".reg .pred is_odd;",
        f"mov.u32 table, {_TABLE};",
        "mov.u32 lane, %laneid;",
        "shl.b32 lane, lane, 2;",
    ]
    for k in range(8 * _ROWS):
        word, byte = _ROWS + k // 4, k % 4
        # The byte times 128, the size of a pair's copies, beside the place of the lane's copy.
        shift = (
            f"shr.u32 place, ${word}, {8 * byte - 7};" if byte else f"shl.b32 place, ${word}, 7;"
        )
        lines += [
            shift,
            "lop3.b32 place, place, 0x7f80, lane, 0xea;",
            "add.u32 place, place, table;",
            f"ld.shared.b32 pair{k}, [place];",
        ]
    for two in range(_ROWS // 2):
        sums = f"{{sum{4 * two}, sum{4 * two + 1}, sum{4 * two + 2}, sum{4 * two + 3}}}"
        for turn in range(4):
            k, x = 16 * two + 2 * turn, vector + 2 * turn
            start = sums if turn else "{0f00000000, 0f00000000, 0f00000000, 0f00000000}"
            lines.append(
                f"mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {sums}, "
                f"{{pair{k}, pair{8 + k}, pair{k + 1}, pair{9 + k}}}, {{${x}, ${x + 1}}}, {start};"
            )
    # One of the two columns of a lane that the product gives may be the group's own.
    # The lane's number is four times as large here.
    lines += ["and.b32 place, lane, 16;", "setp.ne.u32 is_odd, place, 0;"]
    for i in range(_ROWS):
        lines += [
            f"selp.f32 sum{2 * i}, sum{2 * i + 1}, sum{2 * i}, is_odd;",
            f"fma.rn.f32 ${i}, sum{2 * i}, ${scale + 2 * i}, ${before + i};",
        ]
    return "\n".join([*lines, "}"])
