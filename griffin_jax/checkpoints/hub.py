"""Models by their name on the Hugging Face Hub. Needs the `hf` extra."""

import re
from pathlib import Path

from griffin_jax.errors import CheckpointError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*.safetensors",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


def is_hub_name(path: str) -> bool:
    """Returns whether a text could be a repository: "google/recurrentgemma-2b-it"."""
    return _NAME.fullmatch(path) is not None


def fetch(name: str) -> Path:
    """Downloads a repository's config, tokenizer and safetensors, or finds them in the Hub's cache.

    Args:
      name: The repository, "google/recurrentgemma-2b-it".

    Returns:
      The folder in the Hub's cache.

    Raises:
      FileNotFoundError: there is neither such a folder here nor such a repository.
      CheckpointError: the `hf` extra is not installed, the repository wants a log-in and its
        license accepted, or the Hub cannot be reached.
    """
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise CheckpointError(
            f"no folder {name} here, and fetching it from the Hub needs "
            "pip install 'griffin_jax[hf]'"
        ) from error
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(_FILES)))
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{name} is gated: accept its license at https://huggingface.co/{name}, then log in "
            "with 'hf auth login' or set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"there is neither a folder {name} here nor a public model https://huggingface.co/"
            f"{name}; a private one needs 'hf auth login'"
        ) from error
    # Whatever HTTP library the Hub's client uses (it has changed), this is that one's base class.
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.HTTPError) as error:
        raise CheckpointError(
            f"no folder {name} here, and the Hub cannot be reached to look for a model of that name"
        ) from error
