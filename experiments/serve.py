"""Serves a Griffin model over HTTP, as OpenAI's clients expect it.

  python -m experiments.serve                                          griffin-tiny, on this machine alone
  python -m experiments.serve --config.model=FOLDER --config.port=80   another model, another port
  python -m experiments.serve --config=configs/serve_gpu.py            a 9B model on a GPU

Open the server's address in a browser for a chat page; docs/serving describes the endpoints. The config
sets the model and the limits. Logs go to standard error as JSON lines. On SIGTERM or Ctrl-C the server
finishes open requests; a second one ends it at once.
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
