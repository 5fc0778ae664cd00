"""The base of our tasks that need a class."""

from lm_eval.api.task import ConfigurableTask


class GriffinTask(ConfigurableTask):
    """A YAML task whose behavior a class changes: `class: !function griffin_jax...Name`.

    The harness hands the whole file over, the line that names the class included.
    """

    def __init__(self, config: dict):
        super().__init__(config={key: value for key, value in config.items() if key != "class"})
