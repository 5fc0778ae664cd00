"""Takes away what only some systems or some versions of JAX have."""

import builtins
import io
import multiprocessing.context
import os
import sys

TRITON = "jax.experimental.pallas.triton"


def hide_files(put, *roots):
    """Nothing is under these folders. `put(object, name, value)` sets an attribute."""

    def hidden(function):
        def call(path, *rest, **options):
            if isinstance(path, str | os.PathLike) and os.fspath(path).startswith(roots):
                raise FileNotFoundError(2, "No such file or directory", os.fspath(path))
            return function(path, *rest, **options)

        return call

    for module, name in ((builtins, "open"), (io, "open"), (os, "open"), (os, "stat")):
        put(module, name, hidden(getattr(module, name)))


def hide_module(put_item, name):
    """Importing the module fails."""
    put_item(sys.modules, name, None)


def hide_forking(put, drop):
    """There is neither `os.fork` nor a context of multiprocessing that forks."""
    drop(os, "fork")
    contexts = {"spawn": multiprocessing.context.SpawnContext()}
    put(multiprocessing.context, "_concrete_contexts", contexts)
    put(
        multiprocessing.context._default_context,
        "_actual_context",
        contexts["spawn"],
    )


def hide_links(put):
    """Links cannot be made, as on Windows without the right to."""

    def refuse(*_, **__):
        raise OSError(1314, "A required privilege is not held by the client")

    put(os, "symlink", refuse)
    put(os, "link", refuse)


def hide_affinity(put, drop):
    """The cores that this process may use cannot be asked for, only those that there are."""
    drop(os, "sched_getaffinity")
    if hasattr(os, "process_cpu_count"):  # Python 3.13's own, made for the one that has gone
        put(os, "process_cpu_count", os.cpu_count)


def hide_all():
    """Everything at once, before anything else is imported."""
    hide_files(setattr, "/proc", "/sys/fs")
    for name in (TRITON, "resource"):
        hide_module(dict.__setitem__, name)
    hide_forking(setattr, delattr)
    hide_links(setattr)
    hide_affinity(setattr, delattr)
