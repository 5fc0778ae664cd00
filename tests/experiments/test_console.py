"""The console script, in a checkout and where a wheel is installed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import griffin_jax
from experiments import guard
from griffin_jax import console

ROOT = Path(__file__).parents[2]
# What a wheel has and a checkout has not: the commands inside the package.
INSTALLED = """
import sys
from pathlib import Path
from griffin_jax import console

console._PACKAGE = Path(sys.argv.pop(1))
sys.argv[0] = "/usr/bin/griffin-jax"
console.main()
"""


def call(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["griffin-jax", *arguments])
    try:
        console.main()
        status = 0
    except SystemExit as ended:
        status = ended.code
    return status, *capsys.readouterr()


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("sampel", "there is no command 'sampel'; did you mean sample?"),
        ("bits-per-bite", "there is no command 'bits-per-bite'; did you mean bits_per_byte?"),
        ("command", "there is no command 'command'; there are benchmark,"),  # a module that is none
        ("", "there is no command ''; there are benchmark,"),
        ("--prompt=Hi", "begin with a command; there are benchmark,"),
    ],
)
def test_an_unknown_command_is_one_line_with_the_nearest(monkeypatch, capsys, name, line):
    status, out, err = call(monkeypatch, capsys, name)
    assert status == 1 and not out
    assert err.startswith(f"error: {line}") and err.count("\n") == 1


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_commands_and_configs_are_listed(monkeypatch, capsys, arguments):
    status, out, err = call(monkeypatch, capsys, *arguments)
    assert status == 0 and not err
    assert "\n  sample  " in out and "train_tiny" in out
    assert "config_files" not in out and "bench_base" not in out
    assert len(out.splitlines()) < 40


def test_every_file_that_python_runs_is_a_command():
    files = [
        path.stem
        for path in (ROOT / "experiments").glob("*.py")
        if "__main__" in path.read_text(encoding="utf-8").replace('["__main__"]', "")
    ]
    commands = console.summaries(ROOT / "experiments")
    assert sorted(files) == sorted(commands)
    assert all(text.endswith(".") and len(text) < 98 for text in commands.values())


def test_the_version_is_that_of_the_package(monkeypatch, capsys):
    assert call(monkeypatch, capsys, "--version") == (0, f"{griffin_jax.__version__}\n", "")


def test_texts_name_commands_as_they_were_called(monkeypatch):
    text = (
        "python -m experiments.pack --config=configs/pack_nf4.py; experiments.tables makes tables"
    )
    monkeypatch.setattr(sys, "argv", ["/usr/bin/griffin-jax"])
    assert guard.as_called(text) == (
        "griffin-jax pack --config=pack_nf4; griffin-jax tables makes tables"
    )
    assert guard.as_called("/mine/configs/x.py") == "/mine/configs/x.py"
    monkeypatch.setattr(sys, "argv", ["experiments/pack.py"])
    assert guard.as_called(text) == text


def test_no_commands_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(console, "_PACKAGE", tmp_path / "griffin_jax")
    with pytest.raises(SystemExit, match="has no commands beside it; install griffin_jax again"):
        console.find_commands()


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A folder as that of the installed package, as far as commands are concerned."""
    folder = tmp_path_factory.mktemp("site") / "griffin_jax"
    for name in ("experiments", "configs"):
        shutil.copytree(ROOT / name, folder / "commands" / name)
    return folder


def installed(package, cwd, *arguments):
    return subprocess.run(
        [sys.executable, "-c", INSTALLED, str(package), *arguments],
        cwd=cwd,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def test_an_installed_command_explains_itself_without_a_checkout(package, tmp_path):
    done = installed(package, tmp_path, "quantization-quality", "--help")
    assert done.returncode == 0, done.stderr
    assert "griffin-jax quantization_quality --config.model=FOLDER" in done.stdout
    assert "--config=FILE, quantization_quality unless given" in done.stdout
    assert "python -m" not in done.stdout and "configs/" not in done.stdout


CONFIG = """
from configs import bench_decode

def get_config():
    config = bench_decode.get_config("tiny")
    config.repeats = 0
    return config
"""


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["benchmark", "--config=bench_decod"],
            "--config=bench_decod: there is no such file; did you mean bench_decode?",
        ),
        # A config of one's own, outside of the folder, builds on one that ships.
        (["benchmark", "--config=mine.py"], "config.repeats must be"),
        (["sample", "--config=train_tiny"], "is a config of griffin-jax train"),
        (["tables"], "there is no runs/evaluation here; give --results=FILE or a folder"),
    ],
)
def test_an_installed_command_is_told_in_one_line_what_is_wrong(package, tmp_path, arguments, line):
    (tmp_path / "mine.py").write_text(CONFIG)
    done = installed(package, tmp_path, *arguments)
    assert done.returncode == 1 and not done.stdout
    (told,) = done.stderr.splitlines()
    assert told.startswith("error: ") and line in told
