"""A contender in a process of its own, launched in turn with the others all the same.

Whole training steps are compared so, because they differ in what they ask of the process: fastssl keeps freed memory
(`fastssl.keep_freed_memory`), which within one process would speed up every contender, and torch.compile leaves caches.
"""

import multiprocessing
import traceback
import weakref
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import torch

from benchmarks.timing import Launch


class OwnProcess:
    """A launch that another process builds once and runs on request, with as many threads as this one has.

    Args:
        build: returns the launch, there; must be picklable, such as a `functools.partial` of a module's function.
        wait: until it is built; otherwise `self.wait` is to be called before the first launch.

    Raises:
        RuntimeError: with the other process's traceback, where it could not build or launch.
    """

    def __init__(self, build: Callable[[], Launch], *, wait: bool = True) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(build, theirs), daemon=True)
        process.start()
        theirs.close()
        self._process = process
        self._end = weakref.finalize(self, _end, self._connection, process)
        if wait:
            self.wait()

    def wait(self, seconds: float | None = None) -> None:
        """Wait until the launch is built; one that is not within so many seconds is ended.

        Raises:
            RuntimeError: where it could not be built, or not in time.
        """
        if seconds is not None and not self._connection.poll(max(seconds, 0.0)):
            self._process.kill()
            self._end()
            raise RuntimeError(f"a contender was not ready within {seconds:.0f} s")
        self._receive()

    def __call__(self) -> float:
        """Launch there, and return the seconds that it took by its own account."""
        self._connection.send(torch.get_num_threads())
        return self._receive()

    def _receive(self) -> float:
        try:
            seconds, error = self._connection.recv()
        except EOFError:
            raise RuntimeError("a contender's process ended without a word; its message, if any, is above") from None
        if error:
            self._end()
            raise RuntimeError(f"a contender's process failed:\n{error}")
        return seconds


def _serve(build: Callable[[], Launch], connection: Connection) -> None:
    """Build, answer, then launch once a request until the connection ends."""
    try:
        launch = build()
        connection.send((0.0, ""))
        while True:
            torch.set_num_threads(connection.recv())
            connection.send((launch(), ""))
    except EOFError:
        return
    except Exception:
        connection.send((0.0, traceback.format_exc()))
        raise


def _end(connection: Connection, process: BaseProcess) -> None:
    connection.close()
    process.join(timeout=5)
    process.terminate()
