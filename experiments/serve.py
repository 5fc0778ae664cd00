"""Serves a Griffin model over HTTP, as OpenAI's clients expect it.

  python -m experiments.serve                                          griffin-tiny, on this machine alone
  python -m experiments.serve --config.model=FOLDER --config.port=80   another model, another port
  python -m experiments.serve --config=configs/serve_gpu.py            a 9B model on a GPU

The page at the server's address talks to the model; docs/serving says what else there is. The config
says what is served and within what bounds; the default, configs/serve.py, lists all fields. Logs go to
standard error, a JSON line each. SIGTERM or Ctrl-C lets open requests end, a second one does not.
"""

import dataclasses
from pathlib import PurePath

from experiments import command

_CONFIG = command.define_config("serve", "serve.py")


def main() -> None:
    from griffin_jax.evaluation import model as models
    from griffin_jax.serving import server
    from griffin_jax.serving.settings import ServerSettings, read_keys

    config = _CONFIG.value
    names = [entry.name for entry in dataclasses.fields(ServerSettings)]
    settings = ServerSettings(**{name: config[name] for name in names})
    keys = read_keys(settings)
    mesh = command.mesh_of(config.mesh)
    with server.bind(settings) as listener:  # before the model is loaded, which takes longer
        lm = models.load(
            config.model,
            quantization=config.quantization,
            dtype=config.dtype,
            mesh=mesh,
            adapter=config.adapter,
        )
        name = PurePath(config.model).name or config.model
        server.serve(server.make_server(lm, settings, name, keys), listener)


if __name__ == "__main__":
    command.run(main)
