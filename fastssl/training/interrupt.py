"""Ctrl-C and SIGTERM as a wish to stop at the next step."""

import os
import signal
import sys
import threading
from types import FrameType, TracebackType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
EXIT_CODES = {number.name: 128 + number for number in _SIGNALS}
"""Exit codes of a process that a signal ended, by custom: SIGINT 130, SIGTERM 143."""


class StopRequest:
    """A context in which the first SIGINT or SIGTERM only sets `received`; a second one acts as it did outside.

    Outside the main thread, where Python does not deliver signals, it does nothing.
    """

    def __init__(self) -> None:
        self._previous: dict[signal.Signals, object] = {}
        self.received: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.received is not None

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._receive) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._restore()
        message = f"\n{self.received.name}: finishing this step and saving; once more to leave at once\n"
        # A buffered stream may be in the middle of a write when the signal arrives; the file descriptor never is.
        os.write(sys.__stderr__.fileno(), message.encode())

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
