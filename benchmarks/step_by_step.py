"""A trainer's own loop, run one step at a time."""

import threading
import time
from collections.abc import Callable


class StepByStep:
    """A launch that lets a training loop go on by one step.

    The loop runs in a thread of its own, and waits at the end of each step to be launched again. So a launch holds all
    that a step costs its user: fetching the batch, forward, backward, clipping, optimizer, schedule, bookkeeping.

    Args:
        train: runs the loop, and calls its argument at the end of each step.

    Raises:
        RuntimeError: where the loop ended or failed before its first step was done.
    """

    def __init__(self, train: Callable[[Callable[[], None]], object]) -> None:
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None
        self._ended = False
        threading.Thread(target=self._run, args=(train,), daemon=True).start()
        self._wait()

    def __call__(self) -> float:
        """Do one step and return the seconds that it took."""
        start = time.perf_counter()
        self._go.release()
        self._wait()
        return time.perf_counter() - start

    def _pause(self) -> None:
        self._done.release()
        self._go.acquire()

    def _run(self, train: Callable[[Callable[[], None]], object]) -> None:
        try:
            train(self._pause)
        except BaseException as error:
            self._error = error
            raise
        finally:
            self._ended = True
            self._done.release()

    def _wait(self) -> None:
        self._done.acquire()
        if self._ended:
            raise RuntimeError("the training loop has ended") from self._error
