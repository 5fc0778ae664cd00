"""The table: which mesh axes each dimension of each array lies over, by the array's name.

Parameters, optimizer state, adapters, decoding state and batches are found by the end of their path
in a tree, so that one table serves all trees that hold them, concrete or abstract. A leaf with more
leading dimensions than its rule (layers that are stacked) has them whole on every device.
"""

import re

from griffin_jax.devices import BATCH, FSDP, MODEL, SEQUENCE, Axes

# Layers whose outputs lie over `model`, and those that read such outputs and sum over them.
_COLUMN = "(q_proj|gate_proj|up_proj|linear_x|linear_y)"
_ROW = "(o_proj|down_proj|linear_out)"
_KEY_VALUE = "(k_proj|v_proj)"
_GATE = "(input_gate|a_gate)"

RULES: tuple[tuple[str, Axes], ...] = (
    # Parameters. V vocabulary, D width, R recurrence width, N heads and gate blocks, C taps.
    ("embedder/embedding|lm_head/weight", (MODEL, FSDP)),  # [V, D]
    (f"{_COLUMN}/weight", (MODEL, FSDP)),  # [out, in]
    (f"{_COLUMN}/bias", (MODEL,)),
    (f"{_ROW}/weight", (FSDP, MODEL)),
    (f"{_ROW}/bias", (None,)),
    (f"{_KEY_VALUE}/weight", (None, FSDP)),  # the one head of keys and values is everywhere
    (f"{_KEY_VALUE}/bias", (None,)),
    (f"{_GATE}/weight", (MODEL, FSDP, None)),  # [N, R/N, R/N]
    (f"{_GATE}/bias", (MODEL, None)),
    ("rg_lru/a_param", (MODEL,)),
    ("conv_1d/weight", (None, MODEL)),  # [C, R]
    ("conv_1d/bias", (MODEL,)),
    ("norm/scale", (None,)),
    # Adapters: a [rank, in], b [out, rank].
    (f"{_COLUMN}/(lora_a|weight/a)", (None, FSDP)),
    (f"{_COLUMN}/(lora_b|weight/b)", (MODEL, None)),
    (f"{_ROW}/(lora_a|weight/a)", (None, MODEL)),
    (f"{_ROW}/(lora_b|weight/b)", (FSDP, None)),
    (f"{_KEY_VALUE}/(lora_a|weight/a)", (None, FSDP)),
    (f"{_KEY_VALUE}/(lora_b|weight/b)", (None, None)),
    # Decoding state.
    ("position", (BATCH,)),
    ("hidden", (BATCH, MODEL)),  # [B, R]
    ("conv", (BATCH, None, MODEL)),  # [B, C - 1, R]
    ("keys|values", (BATCH, None, None, None)),  # [B, S, K, H]
    # Batches, [B, T].
    ("tokens|inputs|targets|positions|mask", (BATCH, SEQUENCE)),
    ("lengths", (BATCH,)),
)
_COMPILED = tuple((re.compile(rf"(?:^|.*/|.*_)(?:{end})"), axes) for end, axes in RULES)
# What a packed weight keeps beside its bytes and scales is small, and whole on every device.
_WHOLE = re.compile(r".*/(code|nested_absmax|nested_code|nested_offset)")
_PACKED = re.compile(r"/(packed|absmax)$|/base(?=/|$)")


def axes_of(path: str, ndim: int) -> Axes:
    """The mesh axes of each dimension of the array at `path`, such as (None, "model").

    `path` may be that of a field of a 4-bit weight ("blocks_0/mlp_block/up_proj/weight/packed"),
    which lies as the weight does; one that is stored flat is whole on every device.

    Raises:
      ValueError: the table has no rule for such a path, or the array fewer dimensions than it.
    """
    if not ndim or _WHOLE.fullmatch(path):
        return (None,) * ndim
    weight = _PACKED.sub("", _PACKED.sub("", path))
    axes = next((axes for pattern, axes in _COMPILED if pattern.fullmatch(weight)), None)
    if axes is None:
        raise ValueError(f"no sharding rule for {path}: give griffin_jax.sharding.rules one")
    if ndim < len(axes):
        if weight != path:
            return (None,) * ndim
        raise ValueError(f"{path} has {ndim} dimensions, its sharding rule {len(axes)}")
    return (None,) * (ndim - len(axes)) + axes


def split_of(path: str) -> str | None:
    """Which side of a linear layer's weight [out, in] lies over `model`: "out", "in" or None."""
    out, inner = axes_of(f"{path}/weight", 2)
    return "out" if out == MODEL else "in" if inner == MODEL else None


def without(axes: Axes, axis: str) -> Axes:
    """The same with one mesh axis left out: its devices hold the whole."""

    def leave_out(names):
        if isinstance(names, tuple):
            return tuple(name for name in names if name != axis) or None
        return None if names == axis else names

    return tuple(map(leave_out, axes))
