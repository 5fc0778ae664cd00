"""The shape of a Griffin model, and the published shapes by name. No I/O happens here."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from griffin_jax.fields import check_fields, field, shown

RECURRENT = "recurrent"
ATTENTION = "attention"
DTYPES = ("float32", "float16", "bfloat16")

# Far beyond what anybody trains. A size that is damaged or made up is told of here, before a program
# of a million layers is traced.
_MOST_LAYERS = 10_000
_MOST_HEADS = 2**14
_MOST_FEATURES = 2**20
_MOST_TAPS = 1024
_MOST_TOKENS = 2**24  # ids below this are exact in float32


@dataclasses.dataclass(frozen=True)
class GriffinConfig:
    """Everything that decides the shapes and the math of a model (arXiv:2402.19427).

    Attributes:
      vocab_size: Rows of the embedding, V.
      width: Size of the residual stream, D.
      mlp_width: Size of the MLP's hidden layer, F (gate and up projections each).
      num_layers: Number of residual blocks.
      num_heads: Query heads, N; also the number of diagonal blocks in the RG-LRU gates.
      block_pattern: Kinds of temporal mixing, cycled over the layers: "recurrent", "attention" or
        another key of `models.blocks.BLOCKS`.
      recurrence_width: Size of the RG-LRU, R. Defaults to `width`.
      head_size: Size of one attention head, H. Defaults to `width // num_heads`.
      num_kv_heads: Key and value heads; 1 is multi-query attention.
      attention_window: The window W of local attention; None attends to everything before.
      window_includes_query: With False, a query sees itself and the W keys before it, as the
        authors' `recurrentgemma` does. With True it sees W keys in all, itself among them, as
        transformers does. Texts of at most W tokens do not tell the two apart.
      conv_width: Taps of the causal depthwise convolution.
      scale_embeddings: Multiply embeddings by sqrt(width).
      round_embedding_scale: That factor is rounded to bfloat16, as RecurrentGemma has it. With False
        it has the precision of the activations, as Gemma has it.
      logits_soft_cap: Logits become cap * tanh(logits / cap); None leaves them alone.
      tie_embeddings: The output head is the embedding.
      rope_base: Longest wavelength of the rotary embedding over 2 pi.
      rope_fraction: The leading share of each head that is rotated.
      norm_eps: Added to the mean square in RMSNorm.
      attention_bias: Biases on the q, k and v projections.
      projection_bias: Biases on every other linear layer.
    """

    vocab_size: int = field(at_least=1, at_most=_MOST_TOKENS)
    width: int = field(at_least=1, at_most=_MOST_FEATURES)
    mlp_width: int = field(at_least=1, at_most=_MOST_FEATURES)
    num_layers: int = field(at_least=1, at_most=_MOST_LAYERS)
    num_heads: int = field(at_least=1, at_most=_MOST_HEADS)
    block_pattern: tuple[str, ...] = field((RECURRENT, RECURRENT, ATTENTION), filled=True)
    recurrence_width: int | None = field(None, at_least=1, at_most=_MOST_FEATURES)
    head_size: int | None = field(None, at_least=1, at_most=_MOST_FEATURES)
    num_kv_heads: int = field(1, at_least=1, at_most=_MOST_HEADS)
    attention_window: int | None = field(2048, at_least=1, at_most=_MOST_TOKENS)
    window_includes_query: bool = False
    conv_width: int = field(4, at_least=1, at_most=_MOST_TAPS)
    scale_embeddings: bool = True
    round_embedding_scale: bool = True
    logits_soft_cap: float | None = field(30.0, above=0)
    tie_embeddings: bool = True
    rope_base: float = field(10_000.0, above=0)
    rope_fraction: float = field(0.5, at_least=0, at_most=1)
    norm_eps: float = field(1e-6, at_least=0, below=1)
    attention_bias: bool = False
    projection_bias: bool = True

    def __post_init__(self):
        check_fields(self)
        if self.recurrence_width is None:
            object.__setattr__(self, "recurrence_width", self.width)
        if self.head_size is None:
            if self.width % self.num_heads:
                raise ValueError(
                    f"width {self.width} does not divide over num_heads {self.num_heads}; "
                    "give head_size or another number of heads"
                )
            object.__setattr__(self, "head_size", self.width // self.num_heads)
        self._check()

    def _check(self):
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads {self.num_kv_heads} must divide num_heads {self.num_heads}"
            )
        if RECURRENT in self.block_types and self.recurrence_width % self.num_heads:
            raise ValueError(
                f"recurrence_width {self.recurrence_width} does not divide over the "
                f"{self.num_heads} gate blocks (num_heads)"
            )
        if self.rotated_size % 2:
            raise ValueError(
                f"rope_fraction {self.rope_fraction} of head_size {self.head_size} must be even"
            )

    @property
    def block_types(self) -> tuple[str, ...]:
        """The kind of temporal mixing of every layer."""
        pattern = self.block_pattern
        return tuple(pattern[i % len(pattern)] for i in range(self.num_layers))

    @property
    def attention_reach(self) -> int | None:
        """How many tokens before its own a query sees; None for all."""
        window = self.attention_window
        return window and window - self.window_includes_query

    @property
    def rotated_size(self) -> int:
        """How many of a head's columns, the first ones, turn with the position."""
        return int(self.head_size * self.rope_fraction)

    def replace(self, **changes: Any) -> "GriffinConfig":
        """Returns a copy with some fields changed.

        Sizes that were derived stay as they are: with another `width` or `num_heads`, give
        `head_size` and `recurrence_width` too, or None to derive them anew.
        """
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values only, ready for JSON."""
        return dataclasses.asdict(self) | {"block_pattern": list(self.block_pattern)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "GriffinConfig":
        """Returns the inverse of `to_dict`.

        Raises:
          ValueError: a key is unknown, a required one is missing, or a value is none that a model has.
        """
        if not isinstance(values, dict):
            raise ValueError(f"griffin_jax config: expected a dict of fields, got {shown(values)}")
        fields = {f.name: f for f in dataclasses.fields(cls)}
        unknown = sorted(set(values) - set(fields))
        required = {n for n, f in fields.items() if f.default is dataclasses.MISSING}
        missing = sorted(required - set(values))
        if unknown or missing:
            raise ValueError(f"griffin_jax config: unknown fields {unknown}, missing {missing}")
        return cls(**values)


RECURRENTGEMMA_2B = GriffinConfig(
    vocab_size=256_000, width=2560, mlp_width=7680, num_layers=26, num_heads=10
)
RECURRENTGEMMA_9B = GriffinConfig(
    vocab_size=256_000, width=4096, mlp_width=12_288, num_layers=38, num_heads=16
)
GRIFFIN_7B = GriffinConfig(
    vocab_size=256_000,
    width=4096,
    mlp_width=12_288,
    num_layers=32,
    num_heads=32,
    recurrence_width=5632,
    attention_window=1024,
    scale_embeddings=False,
    logits_soft_cap=None,
)
HAWK_7B = GRIFFIN_7B.replace(block_pattern=(RECURRENT,))
# The paper's MQA Transformer baselines: the same blocks with global attention.
MQA_7B = GRIFFIN_7B.replace(block_pattern=(ATTENTION,), attention_window=None)
MQA_1B = MQA_7B.replace(
    width=2048, mlp_width=6144, num_layers=24, num_heads=16, head_size=128, recurrence_width=None
)
# Gemma 1 (arXiv:2403.08295): 7B has as many key and value heads as query heads, 2B has one.
GEMMA_7B = GriffinConfig(
    vocab_size=256_000,
    width=3072,
    mlp_width=24_576,
    num_layers=28,
    num_heads=16,
    block_pattern=(ATTENTION,),
    head_size=256,
    num_kv_heads=16,
    attention_window=None,
    round_embedding_scale=False,
    logits_soft_cap=None,
    rope_fraction=1.0,
    projection_bias=False,
)
GEMMA_2B = GEMMA_7B.replace(
    width=2048,
    mlp_width=16_384,
    num_layers=18,
    num_heads=8,
    num_kv_heads=1,
    recurrence_width=None,
)
TINY = GriffinConfig(
    vocab_size=384,
    width=64,
    mlp_width=192,
    num_layers=5,
    num_heads=4,
    recurrence_width=96,
    attention_window=32,
)

PRESETS: dict[str, GriffinConfig] = {
    "recurrentgemma-2b": RECURRENTGEMMA_2B,
    "recurrentgemma-9b": RECURRENTGEMMA_9B,
    "griffin-7b": GRIFFIN_7B,
    "hawk-7b": HAWK_7B,
    "mqa-1b": MQA_1B,
    "mqa-7b": MQA_7B,
    "gemma-2b": GEMMA_2B,
    "gemma-7b": GEMMA_7B,
    "tiny": TINY,
}


def preset(name: str) -> GriffinConfig:
    """Returns the published shape called `name`; base and instruction-tuned models share a shape.

    Raises:
      ValueError: there is no such preset; the message lists those there are.
    """
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(f"no preset {shown(name)}; there are {', '.join(PRESETS)}")
    return PRESETS[name]


def check_dtype(dtype: DTypeLike) -> np.dtype:
    """Returns `dtype`, a name or a type, as numpy has it.

    Raises:
      ValueError: it is not one that a model runs in: float32, float16 or bfloat16.
    """
    try:
        checked = jnp.dtype(dtype)
    except TypeError:
        checked = None
    if checked is None or checked.name not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {shown(dtype)}")
    return checked
