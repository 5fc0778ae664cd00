"""JAX's persistent compilation cache, which commands switch on and a program of one's own may."""

import os

import jax

from griffin_jax.paths import make_folder, resolve


def enable_compilation_cache() -> None:
    """Keeps compiled programs in the user's cache folder, so that a second run starts at once.

    `JAX_COMPILATION_CACHE_DIR` names another folder; `JAX_ENABLE_COMPILATION_CACHE=0` turns it off.
    Without a home folder, or where it cannot be written into, there is no cache.
    """
    named = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if named and "://" in named:  # storage that JAX reaches by itself
        folder = named
    else:
        try:
            cache = resolve(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
            folder = str(make_folder(named or cache / "griffin_jax" / "xla"))
        except (OSError, ValueError):
            return
    jax.config.update("jax_compilation_cache_dir", folder)
    # JAX leaves out programs that compile within a second; a small model has no others.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
