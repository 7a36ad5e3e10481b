"""Processes that turn documents into tokens."""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

from fastssl.data.corpus import SENTENCES, TextForm
from fastssl.data.encoding_worker import EncodedText, encode_documents
from fastssl.data.tokenizer import Tokenizer

_WAITING_PER_PROCESS = 3
_PROGRAM = "import sys; sys.path[:] = sys.argv[1:]; from fastssl.data.encoding_worker import serve; serve()"


class DocumentTask(Protocol):
    """Anything with documents to encode."""

    documents: list[str]


Task = TypeVar("Task", bound=DocumentTask)


class EncodingPool:
    """Encodes tasks in order, by worker processes or, with one process, by the calling one.

    The workers are programs of their own instead of ``multiprocessing``'s: those would import the caller's main module
    again, and so ask every script for ``if __name__ == "__main__":``, or inherit locks of running threads by a fork.
    """

    def __init__(self, tokenizer: Tokenizer, num_processes: int, *, form: TextForm = SENTENCES):
        self._tokenizer, self._form = tokenizer, form
        self._workers = [_Worker() for _ in range(num_processes)] if num_processes > 1 else []

    def __enter__(self) -> EncodingPool:
        try:
            for worker in self._workers:
                worker.send((self._tokenizer, self._form))
        except OSError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.close()

    def map_documents(self, tasks: Iterator[Task]) -> Iterator[tuple[Task, EncodedText]]:
        """Iterate over the tasks with their encoded documents, in the order of the tasks, reading few tasks ahead.

        Raises:
            OSError: A worker process was killed.
        """
        if not self._workers:
            for task in tasks:
                yield task, encode_documents(task.documents, self._tokenizer, form=self._form, parallel=True)
            return
        idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._workers:
            idle.put(worker)
        waiting: deque[tuple[Task, Future[EncodedText]]] = deque()
        executor = ThreadPoolExecutor(len(self._workers))
        try:
            for task in tasks:
                waiting.append((task, executor.submit(_encode_by_any, idle, task.documents)))
                if len(waiting) >= len(self._workers) * _WAITING_PER_PROCESS:
                    first, future = waiting.popleft()
                    yield first, future.result()
            for task, future in waiting:
                yield task, future.result()
        finally:
            executor.shutdown(cancel_futures=True)


class _Worker:
    """A process that runs ``encoding_worker.serve``."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Ctrl-C reaches every process of the terminal's session; the parent alone decides.
            start_new_session=True,
        )

    def send(self, message: object) -> None:
        try:
            pickle.dump(message, self.process.stdin, protocol=pickle.HIGHEST_PROTOCOL)
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise self._death() from error

    def receive(self) -> EncodedText:
        try:
            return pickle.load(self.process.stdout)
        except (EOFError, pickle.UnpicklingError) as error:
            raise self._death() from error

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()

    def _death(self) -> OSError:
        return OSError(
            f"a worker process of the encoding ended with code {self.process.wait()}: expected it to live as long as "
            "there is text; if it ran out of memory, use fewer with --num-processes"
        )


def available_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _encode_by_any(idle: queue.SimpleQueue[_Worker], documents: list[str]) -> EncodedText:
    worker = idle.get()
    try:
        worker.send(documents)
        return worker.receive()
    finally:
        idle.put(worker)
