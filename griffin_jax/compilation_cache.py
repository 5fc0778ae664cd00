"""JAX's persistent compilation cache, which commands switch on and a program of one's own may."""

import os
from pathlib import Path

import jax


def enable_compilation_cache() -> None:
    """Keeps compiled programs in the user's cache folder, so that a second run starts at once.

    `JAX_COMPILATION_CACHE_DIR` names another folder; `JAX_ENABLE_COMPILATION_CACHE=0` turns it off.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        jax.config.update("jax_compilation_cache_dir", str(cache / "griffin_jax" / "xla"))
    # JAX leaves out programs that compile within a second; a small model has no others.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
