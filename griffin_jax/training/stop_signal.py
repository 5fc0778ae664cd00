"""A signal to stop, as a flag that is looked at between steps."""

import signal


class StopSignal:
    """Turns SIGTERM and Ctrl-C into `requested`; a second Ctrl-C interrupts as ever."""

    def __enter__(self):
        self.requested = False
        self._before = {
            number: signal.signal(number, self._handle)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def _handle(self, number, frame):
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True

    def __exit__(self, *exception):
        for number, handler in self._before.items():
            signal.signal(number, handler)
