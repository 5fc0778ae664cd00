"""RecurrentGemma and Gemma in Hugging Face transformers, with tiny random weights."""

from pathlib import Path

import numpy as np

WINDOW = 96


def write_folder(folder: Path, *, seed: int, recurrence_width: int, vocab_size: int = 128):
    """Has transformers make a float32 model and save it; the model itself."""
    import torch
    import transformers

    torch.manual_seed(seed)
    config = transformers.RecurrentGemmaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=2 * 48,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        lru_width=recurrence_width,
        attention_window_size=WINDOW,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=1,
    )
    model = transformers.RecurrentGemmaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_tokens" in name:
                parameter.normal_(std=0.1)
            elif parameter.ndim > 1 and "gate_weight" not in name:
                # Large enough for greedy texts that do not just repeat. Large gates would bring a
                # near 1, where 1 - a * a, as computed there, has few digits left.
                parameter.normal_(std=2 * parameter.shape[-1] ** -0.5)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def write_gemma_folder(folder: Path, *, seed: int, kv_heads: int, vocab_size: int = 128):
    """As `write_folder`, of Gemma, with as many key and value heads."""
    import torch
    import transformers

    torch.manual_seed(seed)
    config = transformers.GemmaConfig(
        vocab_size=vocab_size,
        hidden_size=48,  # its root shows whether it is rounded to bfloat16
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        head_dim=16,
    )
    model = transformers.GemmaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_tokens" in name:
                parameter.normal_(std=0.1)
            elif parameter.ndim > 1:
                parameter.normal_(std=2 * parameter.shape[-1] ** -0.5)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def right_padded_logits(model, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Logits float32[B, T, V] of rows of `lengths` tokens, padded at the right."""
    import torch

    mask = torch.arange(tokens.shape[1])[None] < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        return model(
            torch.tensor(tokens, dtype=torch.long), attention_mask=mask.long(), use_cache=False
        ).logits.numpy()


def greedy(model, prompt: np.ndarray, num_tokens: int) -> np.ndarray:
    """The most likely continuation of one prompt by `generate`, which no token ends."""
    import torch

    # Its convolution state has the model's width and breaks on any other recurrence width.
    use_cache = getattr(model.config, "lru_width", None) in (None, model.config.hidden_size)
    model.generation_config.eos_token_id = None
    out = model.generate(
        torch.tensor(prompt[None], dtype=torch.long),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        max_new_tokens=num_tokens,
        use_cache=use_cache,
    )
    return out[0, len(prompt) :].numpy()


def outputs(model, tokens: np.ndarray):
    """Logits, hidden states and attention weights of rows without padding.

    Of a model without a cache: a hidden state before each layer and one behind the last norm; attention
    weights of the layers that have some.
    """
    import torch

    model.set_attn_implementation("eager")  # which has weights to show
    with torch.no_grad():
        out = model(
            torch.tensor(tokens, dtype=torch.long),
            attention_mask=torch.ones(tokens.shape, dtype=torch.long),
            output_hidden_states=True,
            output_attentions=True,
            use_cache=False,
        )
    found = out.attentions or ()
    out.attentions = [x.numpy() for x in found if x is not None]
    out.hidden_states = [x.numpy() for x in out.hidden_states]
    out.logits = out.logits.numpy()
    return out
