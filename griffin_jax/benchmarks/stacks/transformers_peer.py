"""transformers, with bitsandbytes for packed weights, through `model.generate`."""

import functools
import gc
import os
from importlib import metadata
from typing import Any

import jax

from griffin_jax.benchmarks import memory
from griffin_jax.benchmarks.stacks import Mark, Prompts, Unavailable, require
from griffin_jax.benchmarks.subject import Subject
from griffin_jax.checkpoints import CheckpointError
from griffin_jax.checkpoints.huggingface_config import config_to_json

_HINT = "pip install griffin_jax[transformers]"


class Peer:
    """See `stacks.Stack`. PyTorch takes a GPU where it finds one, and all cores of a CPU."""

    copies = 1

    def __init__(self, subject: Subject, seed: int = 0):
        require("torch", "2.6", _HINT)
        require("transformers", "5.0", _HINT)
        if subject.quantization is not None:
            require("bitsandbytes", "0.48", _HINT)
        try:
            values = config_to_json(subject.config)
        except CheckpointError as error:
            raise Unavailable(f"{subject}: {error}") from None
        import torch
        import transformers

        self._torch = torch
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        if self._device == "cuda" and jax.default_backend() != "cpu":
            raise Unavailable(
                f"{subject}: PyTorch shares no GPU with JAX; set --config.isolate=true"
            )
        if self._device == "cpu":
            torch.set_num_threads(os.cpu_count() or 1)
        torch.manual_seed(seed)
        dtype = getattr(torch, subject.dtype)
        config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with self._limits(), torch.device(self._device):
                self._model = transformers.AutoModelForCausalLM.from_config(config).eval()
        finally:
            torch.set_default_dtype(before)
        if subject.quantization is not None:
            with self._limits():
                _pack(torch, self._model, subject, dtype)
            if self._device == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        if subject.quantization is not None:
            versions["bitsandbytes"] = metadata.version("bitsandbytes")
        self.about: dict[str, Any] = subject.to_dict() | {
            "versions": versions,
            "weight_bytes": subject.weight_bytes(),
        }

    def warm(self, prompts: Prompts, tokens: int) -> None:
        """See `stacks.Stack`; a few tokens do."""
        self.generate(prompts, min(tokens, 3), lambda n: None)

    def generate(self, prompts: Prompts, tokens: int, mark: Mark) -> None:
        """See `stacks.Stack`; marks come for every token."""
        torch = self._torch
        ids = torch.tensor(prompts, device=self._device)
        length = ids.shape[1]

        def tell(input_ids, scores, **_):
            if self._device == "cuda":
                torch.cuda.synchronize()
            mark(input_ids.shape[1] - length)
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

        with self._limits(), torch.inference_mode():
            self._model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                min_new_tokens=tokens,
                max_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
                stopping_criteria=[tell],
            )

    def peak_bytes(self) -> int | None:
        """See `stacks.Stack`."""
        if self._device == "cuda":
            return self._torch.cuda.max_memory_allocated()
        return memory.peak_bytes()

    def _limits(self):
        return memory.meeting_limits(self._torch.OutOfMemoryError)


def _pack(torch, model, subject, dtype):
    """Puts bitsandbytes' layers in the place of linear ones, all but the output head."""
    import bitsandbytes as bnb

    settings = subject.quantization
    if settings.load_in_8bit:
        make = functools.partial(
            bnb.nn.Linear8bitLt, has_fp16_weights=False, threshold=settings.llm_int8_threshold
        )
        pack = functools.partial(bnb.nn.Int8Params, requires_grad=False)
    else:
        options = {
            "quant_type": settings.bnb_4bit_quant_type,
            "compress_statistics": settings.bnb_4bit_use_double_quant,
        }
        make = functools.partial(bnb.nn.Linear4bit, compute_dtype=dtype, **options)
        pack = functools.partial(bnb.nn.Params4bit, requires_grad=False, **options)
    for name, layer in list(model.named_modules()):
        if not isinstance(layer, torch.nn.Linear) or "lm_head" in name:
            continue
        parent, _, leaf = name.rpartition(".")
        bias = layer.bias is not None
        packed = make(layer.in_features, layer.out_features, bias=bias, device="meta")
        weight: Any = pack(layer.weight.data.cpu())
        packed.weight = weight.to(layer.weight.device)
        if bias:
            packed.bias = torch.nn.Parameter(layer.bias.data.to(dtype))
        setattr(model.get_submodule(parent), leaf, packed)
    gc.collect()
