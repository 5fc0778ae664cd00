"""The fields of every benchmark's config; it is no config by itself."""

from ml_collections import ConfigDict, config_dict

TINY = ("tiny:bfloat16", "tiny:nf4")
# A shape for meshes of up to eight devices: as many heads, and whole 4-bit blocks in every part.
WIDE = {
    "preset": "tiny",
    "width": 128,
    "mlp_width": 512,
    "recurrence_width": 512,
    "num_heads": 8,
    "head_size": 64,
}


def base(kind: str, size: str) -> ConfigDict:
    """Fields of all kinds; `size` is "" for the published shapes or "tiny" for seconds on a CPU."""
    if size not in ("", "tiny"):
        raise ValueError(f"size {size!r}: there are '' (published shapes) and 'tiny'")
    config = ConfigDict()
    # What is measured: decode, generation, latency, throughput, engine, kernels or training.
    config.kind = kind
    # Refuse to run where JAX finds a CPU alone.
    config.accelerator = not size
    # Every model in a process of its own, so that memory and its peak are its own.
    config.isolate = not size
    # Bytes of the array whose copy gives the bandwidth; 0 for what suits the device.
    config.copy_bytes = 2**22 if size else 0
    # Size of the matrices whose product gives the matrix rate; 0 for what suits the device.
    config.matrix = 256 if size else 0
    # The seed of random weights.
    config.seed = 0
    return config


def models(config: ConfigDict, names: tuple[str, ...]) -> None:
    """Adds the models that are measured: MODEL:WEIGHTS[:DTYPE][@STACK].

    MODEL is a preset or a key of `shapes`, with random weights, or a folder. STACK is griffin_jax,
    or one of the peers "transformers" and "recurrentgemma".
    """
    # MODEL:WEIGHTS[:DTYPE][@STACK] each.
    config.models = names
    # Shapes by name: fields of a GriffinConfig that differ from those of the preset under "preset".
    config.shapes = ConfigDict()
    # Tokens in one dispatch of ours.
    config.burst = 32
    # Run layers in a loop over groups, which compiles faster; None does where it also runs as fast.
    config.stack_layers = config_dict.placeholder(bool)
    mesh(config)


def mesh(config: ConfigDict, data: int = 1) -> None:
    """Adds how devices share the work; peers take one device whatever it says."""
    # Devices that each have rows of their own (data), or a part of the weights (model, fsdp).
    config.mesh = {"data": data, "fsdp": 1, "model": 1, "sequence": 1}
