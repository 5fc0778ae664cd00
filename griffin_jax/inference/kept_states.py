"""States that are kept within given bytes, on the device and in the host's memory."""

import collections
from collections.abc import Callable

import jax

from griffin_jax.inference.row_states import nbytes
from griffin_jax.models.stack import AnyState


class KeptState:
    """A state of one row, wherever it lies.

    Attributes:
      state: The arrays, on the device or the host.
      nbytes: What they take.
      sharding: Where each of them lies on the device.
    """

    def __init__(self, state: AnyState):
        self.state = state
        self.nbytes = nbytes(state)
        self.sharding = jax.tree.map(lambda x: x.sharding, state)


class Tiers:
    """The device, then the host: the least recently used state moves down, then goes.

    Attributes:
      device_bytes: What states take on the device.
      host_bytes: What they take on the host.
    """

    def __init__(
        self, most_device_bytes: int, most_host_bytes: int, gone: Callable[[KeptState], None]
    ):
        self.device_bytes = self.host_bytes = 0
        self._most_device, self._most_host = most_device_bytes, most_host_bytes
        self._gone = gone
        # From the least to the most recently used.
        self._device: collections.OrderedDict[KeptState, None] = collections.OrderedDict()
        self._host: collections.OrderedDict[KeptState, None] = collections.OrderedDict()

    def add(self, kept: KeptState) -> None:
        """Keeps a state that lies on the device, as the most recently used one."""
        self._device[kept] = None
        self.device_bytes += kept.nbytes
        while self.device_bytes > self._most_device:
            oldest, _ = self._device.popitem(last=False)
            self.device_bytes -= oldest.nbytes
            self._to_host(oldest)

    def touch(self, kept: KeptState) -> None:
        """Makes a state the most recently used one of its place."""
        (self._device if kept in self._device else self._host).move_to_end(kept)

    def use(self, kept: KeptState) -> AnyState:
        """The state on the device, as the most recently used one."""
        if kept in self._device:
            self._device.move_to_end(kept)
            return kept.state
        del self._host[kept]
        self.host_bytes -= kept.nbytes
        state = kept.state = jax.device_put(kept.state, kept.sharding)
        self.add(kept)
        return state

    def clear(self) -> None:
        """Lets go of all states."""
        self._device.clear()
        self._host.clear()
        self.device_bytes = self.host_bytes = 0

    def _to_host(self, kept):
        whole = all(leaf.is_fully_addressable for leaf in jax.tree.leaves(kept.state))
        if kept.nbytes > self._most_host or not whole:
            self._gone(kept)
            return
        kept.state = jax.device_get(kept.state)
        self._host[kept] = None
        self.host_bytes += kept.nbytes
        while self.host_bytes > self._most_host:
            oldest, _ = self._host.popitem(last=False)
            self.host_bytes -= oldest.nbytes
            self._gone(oldest)
