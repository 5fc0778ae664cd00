"""What all commands say about the machine."""

import importlib.metadata

import pytest

from experiments import command


@pytest.mark.parametrize(
    ("gpu", "platforms", "plugins", "told"),
    [
        (True, "", [], True),
        (True, "cuda", [], True),
        (True, "", ["xla_cuda13"], False),
        (True, "cpu", [], False),
        (False, "", [], False),
    ],
)
def test_a_gpu_without_its_plugin_is_one_line(tmp_path, monkeypatch, gpu, platforms, plugins, told):
    path = tmp_path / "nvidia0"
    if gpu:
        path.touch()
    entries = [importlib.metadata.EntryPoint(name, "x", "jax_plugins") for name in plugins]
    monkeypatch.setattr(command, "_NVIDIA", (path,))
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setattr(command.importlib.metadata, "entry_points", lambda group: entries)
    hint = command.missing_plugin()
    assert (hint is not None) == told
    if told:
        assert 'pip install -U "jax[cuda13]"' in hint
        assert "\n" not in hint
