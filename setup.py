"""Installation of griffin_jax; pyproject.toml holds the settings of the tools."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HUB = ["huggingface-hub>=1.31", "tokenizers>=0.22.1"]
EVAL = ["lm-eval[math]==0.4.13", "vaderSentiment>=3.3.2"]
TRAIN = ["grain>=0.2.16", "tensorboardX>=2.6.1", "matplotlib>=3.9"]
SERVE = ["starlette>=1.10", "uvicorn>=0.54", "prometheus-client>=0.26", "llguidance>=1.9.1"]
TRANSFORMERS = [
    "torch>=2.9",
    "transformers>=5.17",
    "accelerate>=1.10",
    "bitsandbytes>=0.50",
]

# The commands and their configs stand at the root of a checkout. A wheel has them inside the package, where
# griffin_jax/console.py finds them: names as common as these are not griffin_jax's to take.
COMMANDS = {f"griffin_jax.commands.{folder}": folder for folder in ("experiments", "configs")}

setup(
    name="griffin_jax",
    version=re.search('__version__ = "(.+)"', Path("griffin_jax/__init__.py").read_text())[1],
    description="Run, pack, evaluate, train and study Griffin models (RecurrentGemma) in JAX",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[*find_packages(include=["griffin_jax", "griffin_jax.*"]), *COMMANDS],
    package_dir=COMMANDS,
    include_package_data=True,
    package_data={
        "griffin_jax.commands.configs": ["*.jsonl"],
        "griffin_jax": [
            "py.typed",
            "assets/**/*",
            "serving/static/*",
            "evaluation/tasks/**/*.yaml",
            "evaluation/tasks/**/_*",
            "evaluation/tasks/*.jsonl",
        ],
        "griffin_jax.commands.experiments": ["*.md"],
    },
    # The lowest versions here, and of [test], are those that .ci/run installs and tests with.
    install_requires=[
        "jax>=0.10.2",
        "flax>=0.12.8",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "sentencepiece>=0.2.3",
        "safetensors>=0.6.1",
        "absl-py>=2.1",
        "ml-collections>=1.1",
        "numpy>=2.0",
        "tqdm>=4.66.3",
    ],
    # For lm-evaluation-harness with plugins for models (its pull request 4013), which 0.4.13 lacks.
    entry_points={
        "console_scripts": ["griffin-jax = griffin_jax.console:main"],
        "lm_eval.models": ["griffin_jax = griffin_jax.evaluation.harness:GriffinLM"],
    },
    extras_require={
        "hf": HUB,
        "train": TRAIN,
        "eval": EVAL,
        "serve": SERVE,
        "bench": ["matplotlib>=3.9"],
        # To compile for TPUs ahead of time; on a TPU, too.
        "tpu": ["jax[tpu]; sys_platform == 'linux' and platform_machine == 'x86_64'", *TRAIN],
        # A peer of the benchmarks. The other, recurrentgemma, pins versions that conflict with
        # ours: pip install --no-deps -r .ci/requirements-recurrentgemma.txt
        "transformers": TRANSFORMERS,
        "test": [
            *HUB,
            *TRAIN,
            *EVAL,
            *SERVE,
            "openai>=3.57",
            "httpx>=0.28",
            "schemathesis>=4.32",
            "selenium>=4.20",
            "lm-eval[api]==0.4.13",
            "pytest>=8.4",
            "pytest-xdist>=3.8",
            "hypothesis>=6.130.12",
            "chex>=0.1.90",
            "ruff>=0.8",
        ],
        # Whose wheel brings pyright and what runs it.
        "types": ["basedpyright==1.40.*"],
        # Its page of metrics is made of the server's registry.
        "docs": [*SERVE, "mkdocs-material>=9.7", "mkdocstrings[python]>=1.0", "latex2mathml>=3.81"],
        "parity": [
            *TRANSFORMERS,
            "peft>=0.20",
        ],
    },
)
