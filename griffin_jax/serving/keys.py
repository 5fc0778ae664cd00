"""The API keys that are known, while the file that holds them may change."""

import logging
import os
import time

from griffin_jax import paths
from griffin_jax.serving.settings import ServerSettings, read_keys

log = logging.getLogger(__name__)

_LOOK_EVERY = 1.0  # seconds


class Keys:
    """The API keys of a server.

    A file of keys is read again within a second of its being changed or replaced, so that keys can be
    added and withdrawn without a new start. Where it cannot be used then, the keys before it stay, and
    the log says why.
    """

    def __init__(self, known: frozenset[str], settings: ServerSettings):
        """Takes the keys that are known now, and the settings that say where they come from."""
        self._known, self._settings = known, settings
        self._path = None
        if settings.api_key_file is not None:
            self._path = paths.resolve(settings.api_key_file, "api_key_file")
        self._stamp = self._look()
        self._looked = time.monotonic()

    def known(self) -> frozenset[str]:
        """Returns the keys that are known now; none where everybody may ask."""
        if self._path is not None and time.monotonic() - self._looked >= _LOOK_EVERY:
            self._looked = time.monotonic()
            stamp = self._look()
            if stamp != self._stamp:
                self._stamp = stamp
                self._read()
        return self._known

    def _look(self):
        """Returns what tells one version of the file from another; None where there is no file."""
        try:
            found = os.stat(self._path) if self._path is not None else None
        except OSError:
            return None
        return found and (found.st_mtime_ns, found.st_size, found.st_ino)

    def _read(self):
        try:
            self._known = read_keys(self._settings)
        except (OSError, ValueError) as error:
            log.error("API keys not read again", extra={"fields": {"why": str(error)}})
        else:
            log.info("API keys read again", extra={"fields": {"count": len(self._known)}})
