"""A model with its parameters and tokenizer, and what one does with them."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from griffin_jax import inference, inputs
from griffin_jax.config import GriffinConfig, check_dtype
from griffin_jax.fields import check_value
from griffin_jax.inference import (
    Chat,
    Context,
    Engine,
    Sample,
    SamplingConfig,
    SamplingMethod,
    Speculation,
)
from griffin_jax.inference.context import load_context, save_context
from griffin_jax.inference.decode import row_keys
from griffin_jax.inference.device_memory import too_many_rows
from griffin_jax.inference.fingerprint import fingerprint
from griffin_jax.inference.row_states import put_row
from griffin_jax.models import (
    Griffin,
    State,
    decodes_once,
    is_stacked,
    prepare_decoding,
)
from griffin_jax.quantization import QuantizationConfig
from griffin_jax.sharding import (
    is_first,
    jit_on_mesh,
    mesh_of,
    to_host,
)
from griffin_jax.tokenizer import Tokenizer
from griffin_jax.tracing import Trace
from griffin_jax.tracing.trace import select, select_patches, trace

Prompt = str | Sequence[int]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["params"],
    meta_fields=["config", "tokenizer", "dtype", "quantization"],
)
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LanguageModel:
    """A Griffin language model.

    It is a pytree whose leaves are those of `params`, so `jax.jit`, `jax.grad` and `jax.tree.map` take
    it as an argument. Packed weights are integers, which have no gradient:
    `jax.grad(..., allow_int=True)` gives that of the floating-point leaves beside them.

    Attributes:
      config: The model's shape.
      params: The parameters, a nested dict; leaves are arrays or packed tensors. One tree per
        layer, or those of `stack_params`.
      tokenizer: Turns text into tokens and back; None where only tokens are used.
      dtype: The dtype of activations, keys and values.
      quantization: The config that packed weights were made under, which `save` writes down; None
        where it can be inferred from the weights.
    """

    config: GriffinConfig
    params: dict[str, Any]
    tokenizer: Tokenizer | None = None
    dtype: DTypeLike = jnp.float32
    quantization: QuantizationConfig | None = None

    def __post_init__(self):
        object.__setattr__(self, "dtype", check_dtype(self.dtype))

    @property
    def model(self) -> Griffin:
        """The Linen module."""
        return Griffin(self.config, dtype=self.dtype)

    @functools.cached_property
    def mesh(self) -> jax.sharding.Mesh | None:
        """The mesh that the parameters lie on; None on one device, and while they are traced."""
        return mesh_of(self.params)

    def __repr__(self) -> str:
        leaves = [leaf for leaf in jax.tree.leaves(self.params) if hasattr(leaf, "dtype")]
        nbytes = sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in leaves)
        tokenizer = self.tokenizer and f"{self.tokenizer.vocab_size:,} pieces"
        lines = [
            f"LanguageModel(config={self.config}",
            f"params={len(leaves)} arrays, {nbytes:,} bytes",
            f"tokenizer={tokenizer}",
            f"dtype={jnp.dtype(self.dtype).name}",
            f"quantization={self.quantization}",
        ]
        if self.mesh is not None:
            lines.append(f"mesh={dict(self.mesh.shape)}")
        return ",\n  ".join(lines) + ")"

    def apply(
        self,
        tokens: jax.Array | np.ndarray | Sequence[Sequence[int]],
        state: State | None = None,
        lengths: jax.Array | np.ndarray | Sequence[int] | None = None,
        positions: jax.Array | np.ndarray | Sequence[Sequence[int]] | None = None,
        last_only: bool = False,
    ) -> tuple[jax.Array, State]:
        """Computes the logits after every token.

        Args:
          tokens: int32[B, T]. Those in a `jax.Array` stay on their device, so that their ids are not
            checked: the logits of a row with an id outside of the vocabulary mean nothing.
          state: The state of an earlier call, to go on from; None for nothing. It is not changed.
          lengths: int32[B], how many of each row's tokens are real, the rest being padding at its
            right. Defaults to T.
          positions: int32[B, T], each token's position in its document. They go up by one, or start
            again at 0 where another document begins: nothing else is needed to pack several into a
            row. Defaults to going on from the state.
          last_only: Compute logits after each row's last real token alone, which spares the output
            head's work on all others.

        Returns:
          Logits float32[B, T, V], or float32[B, V] with `last_only`; and the state after each row's
          last real token.

        Raises:
          ValueError: `tokens` is not [B, T] or holds an id outside the vocabulary, `lengths` is not
            [B] or outside of 0 to T, `positions` is not [B, T] or takes other steps, `state` is of
            another model or of other rows, or the rows do not divide over the mesh.
        """
        given = inputs.check_call(self.config, self.mesh, tokens, state, lengths, positions)
        # The mesh is known, so nobody walks the tree for it; while it is traced, it is the caller's.
        return _apply.on(self.mesh, self.model, self.params, *given, last_only)

    def trace(
        self,
        tokens: jax.Array | np.ndarray | Sequence[Sequence[int]],
        names: Sequence[str] | str = (),
        patch: Mapping[str, Callable[[jax.Array], jax.Array]] | None = None,
        state: State | None = None,
        lengths: jax.Array | np.ndarray | Sequence[int] | None = None,
        positions: jax.Array | np.ndarray | Sequence[Sequence[int]] | None = None,
    ) -> Trace:
        """Computes what `apply` does, and brings out or changes what is computed on the way.

        `tracing.place_names(lm.config)` lists the names; docs/tracing says what is at each. Patches come
        before captures, so what is brought out is what the model went on with.
        Where a fused kernel does not compute a place that is asked for, its plain definition runs.

        Args:
          tokens: int32[B, T]; this and the last three are as for `apply`.
          names: Names of the places to bring out, in which "*" stands for any part, such as
            "blocks.*.rg_lru.decay".
          patch: For names or patterns, what is to be there as a function of what is there. It must
            be pure and is compiled once, as `jax.jit` would; arrays that change from call to call
            reach it through a `jax.jit` or `jax.grad` of one's own around the trace.
          state: The state of an earlier call, to go on from.
          lengths: int32[B].
          positions: int32[B, T].

        Raises:
          ValueError: as for `apply`; or there is no such place, a patch returns another shape or
            dtype than it is given, or it is of a place that nothing reads.
        """
        names = select(self.config, names, "names")
        patches = select_patches(self.config, patch or {})
        if not (names or patches):
            return Trace(*self.apply(tokens, state, lengths, positions), {})
        given = inputs.check_call(self.config, self.mesh, tokens, state, lengths, positions)
        chosen = {"names": names, "patches": patches, "mesh": self.mesh}
        return trace(self.model, self.params, *given, **chosen)

    def engine(self, *, slots: int = 32, **options: Any) -> Engine:
        """Returns an engine, which writes many texts at once that come and go at any moment.

        `sample`, `stream` and `chat` have engines of their own; they all share what is compiled.

        Args:
          slots: How many texts are read and written at once.
          **options: As for `Engine`.

        Raises:
          ValueError: an option is out of its range, or the device has no memory for so many slots.
        """
        slots = check_value("slots", slots, int, at_least=1)
        limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
        if self.mesh is None and limit is not None:
            message = too_many_rows(self.config, self.params, self.dtype, 1, limit, slots)
            if message is not None:
                raise ValueError(f"slots={slots}: {message}")
        return Engine(
            self.config,
            self.decoding_params,
            self.tokenizer,
            dtype=self.dtype,
            slots=slots,
            **options,
        )

    @functools.cached_property
    def decoding_params(self) -> dict[str, Any]:
        """The parameters as an engine reads them; see `models.prepare_decoding`."""
        return prepare_decoding(self.params, self.dtype)

    @functools.cached_property
    def scoring_params(self) -> dict[str, Any]:
        """The parameters as `score` reads them: an engine's, if these hold a small model's values."""
        return self.decoding_params if decodes_once(self.params, self.dtype) else self.params

    def sample(
        self,
        prompts: str | Sequence[Prompt],
        max_new_tokens: int = 64,
        *,
        sampling: SamplingConfig | SamplingMethod | None = None,
        seed: int | Sequence[int] = 0,
        batch_size: int = 32,
        speculate: Speculation | bool | None = None,
        **options: Any,
    ) -> list[Sample] | Sample:
        """Continues each prompt, or the one text that stands in place of a list.

        Args:
          prompts: Texts, which begin with BOS, or lists of token ids, taken as they are.
          max_new_tokens: At most this many tokens per prompt.
          sampling: How tokens are drawn, greedily by default: a `SamplingConfig`, or an object of
            one's own with the method of `SamplingMethod`.
          seed: An int, or one per prompt: a prompt's own seed gives it the text that it gets alone.
          batch_size: Prompts that run together; it changes memory and speed, not the result.
          speculate: Draft a few tokens at a time, as for `Engine`; it changes speed, not the result.
          **options: Fields of `SamplingConfig` in place of `sampling`, such as temperature, top_k
            and top_p; and `stop`, `stop_ids`, `logprobs` and `context` as for `Engine.submit`.

        Raises:
          ValueError: a prompt is empty or holds an id outside the vocabulary, or another value is
            out of its range.
          TypeError: there is no such option.
        """
        one = isinstance(prompts, str)
        prompts = [prompts] if one else inputs.check_prompts(prompts)
        batch_size = check_value("batch_size", batch_size, int, at_least=1)
        inputs.check_seeds(seed, len(prompts))
        keys = row_keys(seed, len(prompts))
        slots = min(batch_size, max(len(prompts), 1))
        given = {"seconds": None, "fill_first": True, "speculate": speculate}
        with self.engine(slots=slots, **given) as engine:
            requests = []
            for i, prompt in enumerate(prompts):
                given = {"sampling": sampling, "seed": keys[i], "name": f"prompt {i}", **options}
                requests.append(engine.submit(prompt, max_new_tokens, **given))
            engine.run()
            samples = [request.result() for request in requests]
        return samples[0] if one else samples

    def stream(
        self,
        prompt: Prompt,
        max_new_tokens: int = 64,
        *,
        seed: int = 0,
        speculate: Speculation | bool | None = None,
        **options: Any,
    ) -> Iterator[str]:
        """Continues one prompt, in pieces that join to `sample`'s text; arguments as there.

        No piece splits a character or shows part of a stop string. The first token comes at once,
        later ones in bursts of a tenth of a second.
        """
        inputs.check_seeds(seed, 1)
        key = row_keys(seed, 1)[0]
        engine = self.engine(slots=1, speculate=speculate)
        request = engine.submit(prompt, max_new_tokens, seed=key, **options)

        def pieces():
            with engine:
                yield from request

        return pieces()

    def chat(
        self,
        system: str | None = None,
        context: Context | None = None,
        speculate: Speculation | bool | None = None,
    ) -> Chat:
        """Returns a new conversation, which reads each turn once; or one that goes on from a
        context.

        Args:
          system: Instructions before the first turn.
          context: What was read and said before.
          speculate: Draft a few tokens at a time, as for `Engine`.
        """
        self._tokenizer()  # raises without one
        engine = functools.partial(self.engine, slots=1, speculate=speculate)
        return Chat(engine, system, context)

    def read(self, text: Prompt) -> Context:
        """Reads a text, for `sample`, `stream` and `chat` to go on from as often as wanted.

        Args:
          text: A text, which begins with BOS, or token ids.
        """
        with self.engine(slots=1, seconds=None) as engine:
            request = engine.submit(text, 0, keep_context=True, name="text")
            engine.run()
            return request.context()

    def save_context(self, context: Context, file: str | Path) -> None:
        """Writes a context into a file, with a fingerprint of this model's weights.

        Raises:
          OutputError: (an OSError) the file cannot be written.
        """
        inputs.check_type("context", context, Context, "of LanguageModel.read or Request.context")
        mark = self.fingerprint
        context = dataclasses.replace(context, state=to_host(context.state))
        if is_first():
            save_context(context, file, mark)

    def load_context(self, file: str | Path) -> Context:
        """Returns a context that `save_context` has written, in whatever process and on whatever
        device.

        Raises:
          FileNotFoundError: there is no such file.
          CheckpointError: (a ValueError) the file is no context, is damaged, or was written by a
            model of other weights.
        """
        context = load_context(
            file, self.config, self.dtype, self.fingerprint, is_stacked(self.params)
        )
        return dataclasses.replace(context, state=put_row(self.params, context.state))

    @functools.cached_property
    def fingerprint(self) -> str:
        """Tells this model's weights from others', whatever they are stored as; SHA-256, in hex."""
        return fingerprint(self.config, self.params)

    def score(
        self, pairs: Sequence[tuple[Prompt, Prompt]], batch_size: int = 16
    ) -> list[tuple[float, bool]]:
        """Returns how likely each continuation is after its context.

        Args:
          pairs: (context, continuation), both text, which `Tokenizer.encode_pair` cuts, or both token
            ids. An empty text as context is BOS alone.
          batch_size: Pairs that run together.

        Returns:
          For each pair the log-probability of the whole continuation, and whether every token of
          it is the model's most likely one.

        Raises:
          ValueError: a continuation has no token or a list of ids as context is empty, or an id is
            outside the vocabulary.
        """
        batch_size = check_value("batch_size", batch_size, int, at_least=1)
        encoded = []
        for i, pair in enumerate(inputs.check_pairs(pairs)):
            if isinstance(pair[0], str):
                pair = self._tokenizer().encode_pair(*pair)
                if not pair[1]:
                    raise ValueError(
                        f"continuation {i} adds no token of its own to its context; give a longer one"
                    )
            encoded.append(pair)
        return inference.score(self.model, self.scoring_params, encoded, batch_size)

    def _tokenizer(self):
        if self.tokenizer is None:
            raise ValueError("this model has no tokenizer; give lists of token ids")
        return self.tokenizer


@functools.partial(jit_on_mesh, static_argnums=(0, 6))
def _apply(model, params, tokens, state, lengths, positions, last_only):
    def run(model):
        x, after = model.features(tokens, state, positions, lengths)
        if not last_only:
            return model.logits(x), after
        last = jnp.full(len(x), x.shape[1] - 1) if lengths is None else jnp.maximum(lengths - 1, 0)
        return model.logits(jnp.take_along_axis(x, last[:, None, None], axis=1))[:, 0], after

    return nn.apply(run, model)({"params": params})
