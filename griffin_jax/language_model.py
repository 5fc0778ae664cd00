"""A model with its parameters and tokenizer, and what one does with them."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from griffin_jax import checkpoints, inference, inputs
from griffin_jax.checkpoints.huggingface_config import model_type
from griffin_jax.config import GriffinConfig, check_dtype
from griffin_jax.fields import check_value
from griffin_jax.inference import (
    Chat,
    Context,
    Engine,
    Sample,
    SamplingConfig,
    SamplingMethod,
)
from griffin_jax.inference.context import load_context, save_context
from griffin_jax.inference.decode import row_keys
from griffin_jax.inference.fingerprint import fingerprint
from griffin_jax.inference.row_states import put_row
from griffin_jax.kernels.dense_matmul import has_bfloat16
from griffin_jax.kernels.packed_matmul_cpu import for_decoding
from griffin_jax.models import (
    Griffin,
    State,
    abstract_params,
    is_stacked,
    param_shardings,
    prepare_params,
    unstack_params,
)
from griffin_jax.quantization import QuantizationConfig, QuantizedTensor
from griffin_jax.quantization import dequantize as unpack
from griffin_jax.sharding import (
    check_batch,
    check_config,
    is_first,
    jit_on_mesh,
    mesh_of,
    to_host,
)
from griffin_jax.tokenizer import Tokenizer, find_tokenizer

Prompt = str | Sequence[int]

_QUANTIZATION = "a QuantizationConfig, such as griffin_jax.QuantizationConfig()"


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
      dtype: Of activations, keys and values.
      quantization: What packed weights were made under, which `save` writes down; None where the
        weights tell all there is.
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
          state: Of an earlier call, to go on from; None for nothing. It is not changed.
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
        if isinstance(tokens, jax.Array):
            inputs.check_shape_of_rows(tokens)
        else:
            tokens = inputs.check_token_rows(tokens, self.config.vocab_size)
        if not (lengths is None or isinstance(lengths, jax.Array)):
            lengths = inputs.check_lengths(lengths, *tokens.shape)
        if not (positions is None or isinstance(positions, jax.Array)):
            positions = inputs.check_positions(positions, tokens.shape)
        if state is not None:
            inputs.check_state(state, self.config, len(tokens))
        if self.mesh is not None:
            check_batch(len(tokens), self.mesh)

        def whole(numbers):
            return None if numbers is None else jnp.asarray(numbers, jnp.int32)

        tokens, lengths, positions = map(whole, (tokens, lengths, positions))
        arguments = (self.model, self.params, tokens, state, lengths, positions, last_only)
        # Of traced parameters the mesh is the caller's affair, and of others it is known here.
        return _apply(*arguments) if self.mesh is None else _apply.on(self.mesh, *arguments)

    def engine(self, *, slots: int = 32, columns: bool | None = None, **options: Any) -> Engine:
        """An engine, which writes many texts at once that come and go at any moment.

        `sample`, `stream` and `chat` have engines of their own; they all share what is compiled.

        Args:
          slots: How many texts are read and written at once.
          columns: On a CPU, whether 4-bit weights get a second copy that decoding reads; by default
            where there is memory for it. See `packed_matmul_cpu.for_decoding`.
          **options: As for `Engine`.

        Raises:
          ValueError: an option is out of its range, or the device has no memory for so many slots.
        """
        params = self._decoding_params if columns is None else for_decoding(self.params, columns)
        return Engine(self.config, params, self.tokenizer, dtype=self.dtype, slots=slots, **options)

    @functools.cached_property
    def _decoding_params(self):
        return for_decoding(self.params)

    def sample(
        self,
        prompts: str | Sequence[Prompt],
        max_new_tokens: int = 64,
        *,
        sampling: SamplingConfig | SamplingMethod | None = None,
        seed: int | Sequence[int] = 0,
        batch_size: int = 32,
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
        with self.engine(slots=slots, seconds=None, fill_first=True) as engine:
            requests = []
            for i, prompt in enumerate(prompts):
                given = {"sampling": sampling, "seed": keys[i], "name": f"prompt {i}", **options}
                requests.append(engine.submit(prompt, max_new_tokens, **given))
            engine.run()
            samples = [request.result() for request in requests]
        return samples[0] if one else samples

    def stream(
        self, prompt: Prompt, max_new_tokens: int = 64, *, seed: int = 0, **options: Any
    ) -> Iterator[str]:
        """Continues one prompt, in pieces that join to `sample`'s text; arguments as there.

        No piece splits a character or shows part of a stop string. The first token comes at once,
        later ones in bursts of a tenth of a second.
        """
        inputs.check_seeds(seed, 1)
        key = row_keys(seed, 1)[0]
        engine = self.engine(slots=1)
        request = engine.submit(prompt, max_new_tokens, seed=key, **options)

        def pieces():
            with engine:
                yield from request

        return pieces()

    def chat(self, system: str | None = None, context: Context | None = None) -> Chat:
        """A new conversation, which reads each turn once; or one that goes on from a context."""
        self._tokenizer()  # raises without one
        return Chat(functools.partial(self.engine, slots=1), system, context)

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
        mark = self._fingerprint
        context = dataclasses.replace(context, state=to_host(context.state))
        if is_first():
            save_context(context, file, mark)

    def load_context(self, file: str | Path) -> Context:
        """A context that `save_context` has written, in whatever process and on whatever device.

        Raises:
          FileNotFoundError: there is no such file.
          CheckpointError: (a ValueError) the file is no context, is damaged, or was written by a
            model of other weights.
        """
        context = load_context(
            file, self.config, self.dtype, self._fingerprint, is_stacked(self.params)
        )
        return dataclasses.replace(context, state=put_row(self.params, context.state))

    @functools.cached_property
    def _fingerprint(self):
        return fingerprint(self.config, self.params)

    def score(
        self, pairs: Sequence[tuple[Prompt, Prompt]], batch_size: int = 16
    ) -> list[tuple[float, bool]]:
        """How likely each continuation is after its context.

        Args:
          pairs: (context, continuation), both text or both token ids. Texts are cut as
            lm-evaluation-harness cuts them: blanks at a context's end belong to the continuation,
            whose first word they are one piece with; the context's tokens are those of the context
            alone, behind BOS, and the continuation's are those of both together beyond as many. An
            empty text as context is BOS alone.
          batch_size: Pairs that run together.

        Returns:
          For each pair the log-probability of the whole continuation, and whether every token of
          it is the model's most likely one.

        Raises:
          ValueError: a continuation has no token or a list of ids as context is empty, or an id is
            outside the vocabulary.
        """
        batch_size = check_value("batch_size", batch_size, int, at_least=1)
        encoded = [self._encode_pair(i, *pair) for i, pair in enumerate(inputs.check_pairs(pairs))]
        return inference.score(self.model, self.params, encoded, batch_size)

    def _tokenizer(self):
        if self.tokenizer is None:
            raise ValueError("this model has no tokenizer; give lists of token ids")
        return self.tokenizer

    def _encode_pair(self, index, context, continuation):
        if not isinstance(context, str):
            return context, continuation
        encode = self._tokenizer().encode
        words = context.rstrip()
        context, continuation = words, context[len(words) :] + continuation
        before = encode(context, bos=True)
        whole = encode(context + continuation, bos=True)
        if len(whole) <= len(before):
            raise ValueError(
                f"continuation {index} adds no token of its own to its context; give a longer one"
            )
        return before, whole[len(before) :]


@functools.partial(jit_on_mesh, static_argnums=(0, 6))
def _apply(model, params, tokens, state, lengths, positions, last_only):
    def run(model):
        x, after = model.features(tokens, state, positions, lengths)
        if not last_only:
            return model.logits(x), after
        last = jnp.full(len(x), x.shape[1] - 1) if lengths is None else jnp.maximum(lengths - 1, 0)
        return model.logits(jnp.take_along_axis(x, last[:, None, None], axis=1))[:, 0], after

    return nn.apply(run, model)({"params": params})


def load(
    path: str | Path,
    *,
    quantization: QuantizationConfig | None = None,
    dtype: DTypeLike | None = None,
    stack_layers: bool | None = None,
    allow_nan: bool = False,
    mesh: jax.sharding.Mesh | None = None,
) -> LanguageModel:
    """Loads a model and the tokenizer beside it.

    Args:
      path: "griffin-tiny", the model that comes with the package; or a folder in Hugging Face's
        format, with a published DeepMind tree, or written by `save`; or a name on the Hub.
      quantization: Pack linear weights to 4 bits, leaf by leaf on the way: as `quantize`, without
        ever holding the whole model. A folder that is in 4 bits loads as it is without this.
      dtype: Of activations, and of parameters outside of packed weights. Defaults to what
        `QuantizationConfig.compute_dtype` says under 4 bits; otherwise to bfloat16 on accelerators
        and to float32 on CPUs. By default, parameters stored in bfloat16 also stay in it on a CPU
        that multiplies bfloat16: that halves their memory and the time of decoding, and products
        with float32 activations are those of float32 parameters. bfloat16 is four times as fast
        there at reading prompts.
      stack_layers: Run the layers in a loop over groups, see `stack_params`, which compiles faster;
        the result is the same. By default where it also runs as fast, as measured.
      allow_nan: Go on where a weight holds NaN or infinity.
      mesh: Of `griffin_jax.sharding.make_mesh`: the parameters go straight to where its table says,
        however they were saved, and each process reads its part; whatever runs the model runs it
        on the mesh. None: all of it on one device.

    Raises:
      FileNotFoundError: there is no such folder.
      CheckpointError: (a ValueError) the folder has no weights, or damaged or unfitting ones, or is
        in 4 bits already, otherwise than `quantization` says.
      MeshError: (a ValueError) the mesh does not divide the model; the message says which would.
      ValueError: layers to be stacked are not of one kind, the tokenizer is damaged or does not fit
        the model, `dtype` is none that a model runs in, or a weight to be packed holds NaN or
        infinity.
    """
    if quantization is not None:
        inputs.check_type("quantization", quantization, QuantizationConfig, _QUANTIZATION)
    if mesh is not None:
        inputs.check_type("mesh", mesh, jax.sharding.Mesh, "of griffin_jax.sharding.make_mesh")
    if dtype is not None:
        check_dtype(dtype)
    source = checkpoints.open_checkpoint(path)
    if mesh is not None:
        check_config(source.config, mesh)
        # Which raises before anything is read.
        param_shardings(source.config, abstract_params(source.config), mesh)
    tokenizer = find_tokenizer(source.folder, source.config)
    settings = quantization
    if settings is None and source.quantization:
        settings = QuantizationConfig.from_dict(source.quantization)
    # Where products of float32 with bfloat16 lose neither time nor digits.
    native = jax.default_backend() == "cpu" and has_bfloat16()
    keep = jnp.bfloat16 if dtype is None and native else None
    if settings is not None:
        dtype = settings.compute_dtype(dtype)
    elif dtype is None:
        dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    dtype = check_dtype(dtype)
    checkpoint = checkpoints.load_checkpoint(
        source,
        dtype=dtype,
        keep=keep,
        quantization=quantization,
        mesh=mesh,
        allow_nan=allow_nan,
    )
    params = prepare_params(
        source.config, checkpoint.params, mesh=mesh, stack_layers=stack_layers, consume=True
    )
    return LanguageModel(source.config, params, tokenizer, dtype, settings)


def quantize(lm: LanguageModel, quantization: QuantizationConfig) -> LanguageModel:
    """The model with its linear weights in 4 bits, byte for byte as bitsandbytes packs them.

    The embedding, the output head, gates, convolutions, norms and biases stay as they are, and so
    does the model's dtype: `bnb_4bit_compute_dtype` is for those who load what `save` writes.

    Args:
      lm: The model, which is not changed.
      quantization: What to pack, and how.

    Raises:
      ValueError: a weight to be packed holds NaN or infinity.
      CheckpointError: (a ValueError) a weight is in 4 bits already, otherwise than asked for.
    """
    inputs.check_type("lm", lm, LanguageModel, "a LanguageModel")
    inputs.check_type("quantization", quantization, QuantizationConfig, _QUANTIZATION)
    params = unstack_params(lm.config, lm.params)
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    architecture = model_type(lm.config)
    packed = {
        path: checkpoints.pack_leaf(path, leaf, quantization, architecture=architecture)
        for path, leaf in flat.items()
    }
    params = prepare_params(
        lm.config,
        flax.traverse_util.unflatten_dict(packed, sep="/"),
        mesh=lm.mesh,
        stack_layers=is_stacked(lm.params),
    )
    return dataclasses.replace(lm, params=params, quantization=quantization)


def dequantize(lm: LanguageModel, dtype: DTypeLike | None = None) -> LanguageModel:
    """The model with its 4-bit weights unpacked, as gradients and other libraries want them.

    Args:
      lm: The model, which is not changed.
      dtype: Of the unpacked weights; that of the model's activations by default.

    Raises:
      ValueError: `dtype` is none that a model runs in.
    """
    inputs.check_type("lm", lm, LanguageModel, "a LanguageModel")
    dtype = check_dtype(lm.dtype if dtype is None else dtype)
    params = unstack_params(lm.config, lm.params)
    params = jax.tree.map(
        lambda leaf: unpack(leaf, dtype) if isinstance(leaf, QuantizedTensor) else leaf,
        params,
        is_leaf=lambda leaf: isinstance(leaf, QuantizedTensor),
    )
    params = prepare_params(
        lm.config, params, mesh=lm.mesh, stack_layers=is_stacked(lm.params), consume=True
    )
    return dataclasses.replace(lm, params=params, quantization=None)


def save(
    lm: LanguageModel, folder: str | Path, format: Literal["orbax", "huggingface"] = "orbax"
) -> None:
    """Writes a model and its tokenizer into a new folder, which `load` reads back exactly.

    Args:
      lm: The model.
      folder: What to make; it must not exist, or be empty, and appears when it is complete.
      format: "orbax" is ours; "huggingface" is what transformers reads.

    Raises:
      CheckpointError: (a ValueError) the folder holds something, or the format cannot express the
        model.
    """
    inputs.check_type("lm", lm, LanguageModel, "a LanguageModel")
    check_value("format", format, str, one_of=("orbax", "huggingface"))
    params = lm.params
    if is_stacked(params):  # on the host, where layers are views of their stack
        params = unstack_params(lm.config, to_host(params))
    checkpoints.save_checkpoint(
        folder,
        lm.config,
        params,
        format=format,
        tokenizer=lm.tokenizer,
        quantization=None if lm.quantization is None else lm.quantization.to_dict(),
    )
