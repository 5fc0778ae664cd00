"""The one exception of damaged or unsuitable checkpoints."""


class CheckpointError(ValueError):
    """A checkpoint cannot be read or written as asked; one line names what is wrong."""
