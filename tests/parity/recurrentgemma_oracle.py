"""The authors' own implementation, `recurrentgemma` on PyPI, run on our parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from griffin_jax.config import RECURRENT, GriffinConfig


def tree_of(params: dict, config: GriffinConfig) -> dict:
    """Our parameters under the names and in the layouts of `recurrentgemma.jax.Griffin`."""

    def dense(layer):
        return {"kernel": layer["weight"].T} | ({"bias": layer["bias"]} if "bias" in layer else {})

    def einsum(layer):
        return {"w": layer["weight"], "b": layer["bias"]}

    def recurrent(block):
        lru = block["rg_lru"]
        return {
            **{name: dense(block[name]) for name in ("linear_x", "linear_y", "linear_out")},
            "conv_1d": einsum(block["conv_1d"]),
            "rg_lru": {
                "a_param": lru["a_param"],
                **{name: einsum(lru[name]) for name in ("input_gate", "a_gate")},
            },
        }

    def attention(block):
        names = {"proj_q": "q_proj", "proj_k": "k_proj", "proj_v": "v_proj", "proj_final": "o_proj"}
        return {theirs: dense(block[ours]) for theirs, ours in names.items()}

    def mlp(block):
        both = [block["gate_proj"], block["up_proj"]]
        return {
            "ffw_up": {
                "w": jnp.stack([layer["weight"].T for layer in both]),
                "b": jnp.stack([layer["bias"] for layer in both])[:, None, None],
            },
            "ffw_down": dense(block["down_proj"]),
        }

    tree = {
        "embedder": {"input_embedding": params["embedder"]["embedding"]},
        "final_norm": params["final_norm"],
    }
    for i, kind in enumerate(config.block_types):
        block, name = params[f"blocks_{i}"], f"{kind}_block"
        tree[f"blocks.{i}"] = {
            "temporal_pre_norm": block["temporal_pre_norm"],
            "channel_pre_norm": block["channel_pre_norm"],
            name: (recurrent if kind == RECURRENT else attention)(block[name]),
            "mlp_block": mlp(block["mlp_block"]),
        }
    return tree


@functools.cache
def _apply(config: GriffinConfig):
    from recurrentgemma import common
    from recurrentgemma import jax as published

    model = published.Griffin(
        common.GriffinConfig(
            vocab_size=config.vocab_size,
            width=config.width,
            mlp_expanded_width=config.mlp_width,
            num_heads=config.num_heads,
            block_types=tuple(
                getattr(common.TemporalBlockType, kind.upper()) for kind in config.block_types
            ),
            embeddings_scale_by_sqrt_dim=config.scale_embeddings,
            attention_window_size=config.attention_window,
            logits_soft_cap=config.logits_soft_cap or 0.0,
            lru_width=config.recurrence_width,
            scan_type=common.ScanType.LINEAR_NATIVE,
        )
    )
    return jax.jit(
        lambda tree, tokens, positions, cache: model.apply(
            {"params": tree}, tokens, positions, cache
        )
    )


def prefill(config: GriffinConfig, tree: dict, tokens: np.ndarray, positions: np.ndarray):
    """Logits float32[B, T, V] of one call, and its cache."""
    return _apply(config)(tree, tokens, positions, None)


def decode(config: GriffinConfig, tree: dict, tokens: np.ndarray, positions: np.ndarray, cache):
    """Logits float32[B, T, V] of one call per token, from a cache."""
    logits = []
    for t in range(tokens.shape[1]):
        one = np.s_[:, t : t + 1]
        out, cache = _apply(config)(tree, tokens[one], positions[one], cache)
        logits.append(np.asarray(out))
    return np.concatenate(logits, axis=1)
