"""From config files and flags to checked configs, and what is said of files that are none."""

import dataclasses
from pathlib import Path

import pytest

from experiments import command, command_help, config_files, schemas
from griffin_jax.models import blocks
from griffin_jax.sharding import MeshShape
from griffin_jax.training import TrainConfig

CONFIGS = Path(config_files.CONFIGS)
DEFAULTS = {
    "sample": "sample.py",
    "train": "train_tiny.py",
    "pack": "pack_nf4.py",
    "convert": "convert.py",
    "evaluate": "eval_quality.py",
    "benchmark": "bench_decode.py",
    "quantization_quality": "quantization_quality.py",
    "compare_training": "compare_tiny.py",
    "compile_tpu": "compile_tpu.py",
    "inspect": "inspect.py",
    "study": "study_selective_copying.py",
}


def load(name, *arguments):
    choice, rest = config_files.split_arguments(arguments)
    assert not rest
    config = command.Config(name, DEFAULTS[name])
    config.load(choice)
    return config.value


ALL = [
    (name, path.name)
    for name, starts in {
        "train": ("train_", "finetune_"),
        "benchmark": ("bench_cpu", "bench_d", "bench_e", "bench_k", "bench_l", "bench_t"),
        "evaluate": ("eval_",),
        "pack": ("pack_",),
        "study": ("study_",),
    }.items()
    for path in sorted(CONFIGS.glob("*.py"))
    if path.name.startswith(starts)
]


@pytest.mark.parametrize(("name", "file"), [*DEFAULTS.items(), *ALL])
def test_every_config_that_comes_with_the_project_fits_its_command(name, file):
    assert load(name, f"--config={CONFIGS / file}")
    if file.startswith(("bench_", "study_")) and file != "bench_training.py":
        assert load(name, f"--config={CONFIGS / file}:tiny")


@pytest.mark.parametrize("variant", ["tiny", "recurrent", "lru", "gru", "mamba", "cg_lru"])
def test_a_griffin_with_other_gates_has_a_config_for_each(variant):
    model = load("train", f"--config={CONFIGS / 'train_gates.py'}:{variant}").model
    kinds = set(blocks.BLOCKS) - {"attention"} if variant == "tiny" else {variant}
    assert set(model.block_pattern) == kinds | {"attention"}


@pytest.mark.parametrize("file", [file for name, file in ALL if name == "train"])
def test_every_train_config_has_every_setting_of_a_run(file):
    config = load("train", f"--config={CONFIGS / file}", "--config.seed=3", "--config.remat=dots")
    assert (config.seed, config.remat) == (3, "dots")
    assert {entry.name for entry in dataclasses.fields(TrainConfig)} <= set(config)


def test_flags_are_read_by_the_type_of_their_field():
    config = load(
        "sample",
        *("--config.temperature=0", "--config.top_p=None", "--config.top_k", "40"),
        *("--config.chat", "--noconfig.allow_nan", "--config.stop=('a, b', 'c')"),
        *("--config.mesh.model=-1", "--config.seed=4_000", "--config.model=5"),
    )
    assert config.temperature == 0 and config.top_p is None and config.top_k == 40
    assert config.chat is True and config.allow_nan is False
    assert config.stop == ("a, b", "c") and config.model == "5"
    assert MeshShape(**config.mesh) == MeshShape(model=-1)
    assert config.seed == 4000
    assert load("sample", "--config.stop=End.").stop == ("End.",)
    assert load("train", "--config.lora.rank=4").lora.rank == 4
    assert load("evaluate", "--config.limit=7").limit == 7
    shapes = load("benchmark", "--config.shapes.mine.preset=tiny").shapes
    assert shapes.mine.preset == "tiny"


@pytest.mark.parametrize(
    ("name", "arguments", "line"),
    [
        (
            "sample",
            ["--config.temprature=1"],
            "--config has no field 'temprature'; did you mean temp",
        ),
        (
            "sample",
            ["--config.mesh.modle=2"],
            "--config.mesh has no field 'modle'; did you mean model",
        ),
        ("sample", ["--config.nosuch.x=2"], "--config has no field 'nosuch'"),
        ("sample", ["--config.top_k=many"], "config.top_k must be a whole number .*, got 'many'"),
        ("sample", ["--config.top_k=4.5"], "config.top_k must be a whole number"),
        (
            "sample",
            ["--config.top_k=-1"],
            "config.top_k must be a whole number of at least 1, or None",
        ),
        ("sample", ["--config.temperature=nan"], "config.temperature must be a number"),
        ("sample", ["--config.temperature=inf"], "config.temperature must be a number"),
        ("sample", ["--config.temperature="], "config.temperature must be a number"),
        ("sample", ["--config.temperature"], "--config.temperature takes a value"),
        ("sample", ["--config.chat=maybe"], "config.chat must be true or false, got 'maybe'"),
        ("sample", ["--config.seed=-1"], "config.seed must be a whole number of at least 0"),
        ("sample", ["--config.batch_size=0"], "config.batch_size must be"),
        ("sample", ["--config.max_new_tokens=1e9999"], "config.max_new_tokens must be"),
        ("sample", ["--config.dtype=float64"], "config.dtype must be one of float32, float16, bfl"),
        ("sample", ["--config.stop=(1, 2)"], r"config.stop\[0\] must be text, got 1"),
        (
            "sample",
            ["--config.mesh.data=0"],
            "config.mesh.data must be a whole number of at least 1",
        ),
        ("sample", ["--config"], "--config takes a file"),
        ("sample", ["--config="], "--config takes a file"),
        ("sample", ["--noconfig"], "write --noconfig.FIELD"),
        (
            "train",
            ["--config.optimizer.learning_rate=-1"],
            "config.optimizer.learning_rate must be",
        ),
        ("train", ["--config.optimizer.learning_rate=nan"], "learning_rate must be .* got nan"),
        ("train", ["--config.optimizer.warmup_steps=-1"], "config.optimizer.warmup_steps must be"),
        ("train", ["--config.max_seconds=-5"], "config.max_seconds must be"),
        ("train", ["--config.dtype=float64"], "dtype must be"),
        ("train", ["--config.log_every=0"], "config.log_every must be"),
        ("train", ["--config.checkpoint_every=0"], "config.checkpoint_every must be"),
        ("train", ["--model=x"], "own, such as --config.model.vocab_size; .* --config.init_from"),
        ("train", ["--config.data=pictures"], "config.data must be one of text, chat"),
        (
            "train",
            ["--config.model.num_layers=1000000"],
            "config.model.num_layers must be .* at most",
        ),
        ("train", ["--config.lora.rank=0"], "config.lora.rank must be"),
        ("quantization_quality", ["--config.max_bytes=-5"], "config.max_bytes must be"),
        ("quantization_quality", ["--config.chunk=0"], "config.chunk must be"),
        ("quantization_quality", ["--config.rows=0"], "config.rows must be"),
        ("quantization_quality", ["--config.packings=()"], "config.packings must be a list, not"),
        ("compare_training", ["--config.runs=()"], "config.runs must be a list, not empty"),
        ("pack", ["--config.block_size=7"], "config.block_size must be one of 32, 64"),
        (
            "pack",
            ["--config.quantization.bnb_4bit_quant_type=nf5"],
            "quant_type must be one of nf4",
        ),
        ("convert", ["--config.format=gguf"], "config.format must be one of"),
        (
            "evaluate",
            ["--config.limit=0"],
            "config.limit must be a whole number of at least 1, or N",
        ),
        ("benchmark", ["--config.repeats=0"], "config.repeats must be"),
        ("benchmark", ["--config.kind=speed"], "config.kind must be one of decode"),
        ("compile_tpu", ["--config.job=serve"], "config.job must be one of decode, prefill, train"),
    ],
)
def test_a_wrong_flag_is_one_line_with_its_name(name, arguments, line):
    with pytest.raises(ValueError, match=line) as caught:
        load(name, *arguments)
    assert "\n" not in str(caught.value)


FILES = {
    "README.md": (
        "# A page\n\nof text, it's none.\n",
        r"README.md, line \d: no config file in Pyt",
    ),
    "binary": (b"\x00\xff\x01", "binary.*: no config file in Python"),
    "latin.py": (b"x = 'caf\xe9'\n", "latin.py.*: no config file in Python"),
    "typo.py": ("def get_config(:\n", "typo.py, line 1: no config file in Python"),
    "five.py": (
        "def get_config():\n    return 5\n",
        r"five.py: get_config\(\) returned 5; it must",
    ),
    "none.py": ("def get_config():\n    pass\n", r"none.py: get_config\(\) returned None"),
    "empty.py": ("", r"empty.py defines no get_config\(\)"),
    "value.py": ("get_config = 5\n", r"value.py defines no get_config\(\)"),
    "raises.py": ("1 / 0\n", "raises.py: it fails: ZeroDivisionError: division by zero"),
    "exits.py": ("import sys\nsys.exit('no')\n", "exits.py: it fails: SystemExit: no"),
    "imports.py": ("import nothing_like_it\n", "imports.py: it fails: ModuleNotFoundError"),
    "later.py": ("def get_config():\n    return {}['x']\n", "later.py: KeyError: 'x'"),
    "field.py": (
        "def get_config():\n    return {'model': 'x', 'temp': 1}\n",
        "has no field 'temp'",
    ),
    "type.py": (
        "def get_config():\n    return {'temperature': 'hot'}\n",
        "config.temperature must",
    ),
    "nested.py": ("def get_config():\n    return {'mesh': 4}\n", "config.mesh must be a MeshShape"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_config_is_one_line(name, tmp_path):
    content, line = FILES[name]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=line) as caught:
        load("sample", f"--config={tmp_path / name}")
    assert "\n" not in str(caught.value)


def test_what_is_no_file_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="is a folder; name a file"):
        load("sample", f"--config={tmp_path}")
    with pytest.raises(FileNotFoundError, match=r"did you mean configs/sample\.py\?"):
        load("sample", "--config=elsewhere/sample.py")
    with pytest.raises(FileNotFoundError, match=r"x\.py: there is no such file$"):
        config_files.find("/nowhere/x.py")
    with pytest.raises(FileNotFoundError, match=r"did you mean configs/train_tiny\.py\?"):
        load("train", "--config=config/train_tinny.py")
    with pytest.raises(ValueError, match="takes nothing behind a colon, got 'tiny'"):
        load("sample", f"--config={CONFIGS / 'sample.py'}:tiny")
    with pytest.raises(ValueError, match="size 'huge'"):
        load("benchmark", f"--config={CONFIGS / 'bench_decode.py'}:huge")


@pytest.mark.parametrize("name", ["sample", "sample.py", "configs/sample", "configs/sample.py"])
def test_configs_go_by_bare_names(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_files.find(name) == CONFIGS / "sample.py"
    (tmp_path / "sample").mkdir()  # the folder of a model, say
    assert config_files.find(name) == CONFIGS / "sample.py"
    (tmp_path / "sample.py").write_text("def get_config():\n    return {'seed': 5}\n")
    own = name == "sample.py"
    assert load("sample", f"--config={name}").seed == (5 if own else 0)


def test_a_bare_name_takes_an_argument():
    assert load("benchmark", "--config=bench_decode:tiny").models == ("tiny:bfloat16", "tiny:nf4")


OTHERS = [(name, other) for name in DEFAULTS for other in DEFAULTS if name != other]


@pytest.mark.parametrize(("name", "other"), OTHERS)
def test_the_config_of_another_command_is_named_as_such(name, other):
    with pytest.raises(ValueError, match=rf"is a config of experiments\.{other}$"):
        load(name, f"--config={CONFIGS / DEFAULTS[other]}")


def test_words_that_are_no_config_are_left_for_others():
    choice, rest = config_files.split_arguments(
        ["--prompt=x", "--config", "a.py:tiny", "--output", "y", "--", "--config=z"]
    )
    assert (choice.file, choice.argument) == ("a.py", "tiny")
    assert rest == ["--prompt=x", "--output", "y", "--", "--config=z"]


@pytest.mark.parametrize("name", DEFAULTS)
def test_help_lists_every_field_on_one_screen(name):
    rows = command_help.fields(command.Config(name, DEFAULTS[name]))
    values = config_files.read(CONFIGS / DEFAULTS[name])
    names = [entry.name for entry in dataclasses.fields(schemas.COMMANDS[name](values))]
    assert [row[0].removesuffix(".*") for row in rows] == names
    assert len(rows) < 40
    assert not [row for row in rows if not row[2]]
    assert all(len(line) <= 100 for line in command_help._columns(rows))


@pytest.mark.parametrize(
    "spelling", ["--config.model", "--model", "--checkpoint", "--config.checkpoint"]
)
@pytest.mark.parametrize("name", ["pack", "convert", "evaluate", "quantization_quality", "sample"])
def test_a_model_has_one_name_and_its_old_ones_are_told(name, spelling, capsys):
    for words in ([f"{spelling}=folder"], [spelling, "folder"]):
        assert load(name, *words).model == "folder"
        assert ("is called --config.model now" in capsys.readouterr().err) == (
            "checkpoint" in spelling
        )


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, ""),
        (0.5, "=0.5"),
        (("one of two", "and the other of them"), "=2 entries"),
        ({"one": "a value that is longer than most"}, "=1 entry"),
        ("/a/folder/somewhere/deep/down/README.md", "=... /deep/down/README.md"),
        ("a sentence of more words than fit", "=a sentence of more w ..."),
    ],
)
def test_help_shows_what_says_most_of_a_default(value, shown):
    assert command_help._default(value) == shown


def test_a_command_without_a_config_takes_a_model_by_each_name():
    for spelling in ("--config.model", "--model", "--checkpoint", "--config.checkpoint"):
        choice, rest = config_files.split_arguments([f"{spelling}=folder"], flags={"model"})
        assert (choice.fields, rest) == ((), ["--model=folder"])


def test_a_file_that_calls_a_model_a_checkpoint_is_told_the_name(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from configs import eval_quality\n\ndef get_config():\n"
        "    config = eval_quality.get_config()\n    config.checkpoint = 'x'\n    return config\n"
    )
    with pytest.raises(ValueError, match=r"config\.checkpoint is called config\.model now"):
        load("evaluate", f"--config={path}")
