"""Processes that turn documents into tokens."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from fastssl.data.sentences import split_sentences
from fastssl.data.shard_format import token_dtype
from fastssl.data.tokenizer import Tokenizer

_WAITING_PER_PROCESS = 3


class EncodedText(NamedTuple):
    """Documents as arrays, in the form that ``ShardWriter.add_documents`` takes."""

    tokens: np.ndarray
    """``(n)`` ids in the type of ``token_dtype``."""
    word_starts: np.ndarray
    """``(n)`` bool."""
    sentence_lengths: np.ndarray
    """``(s)`` int64, tokens."""
    document_lengths: np.ndarray
    """``(d)`` int64, sentences."""


class DocumentTask(Protocol):
    """Anything with documents to encode."""

    documents: list[str]


Task = TypeVar("Task", bound=DocumentTask)


def encode_documents(documents: list[str], tokenizer: Tokenizer, *, parallel: bool) -> EncodedText:
    """Split documents into sentences and those into tokens, the latter with the library's threads if ``parallel``."""
    sentences = [split_sentences(document) for document in documents]
    encoded = tokenizer.encode_batch([sentence for document in sentences for sentence in document], parallel=parallel)
    dtype = token_dtype(tokenizer.vocab_size)
    return EncodedText(
        tokens=np.concatenate([np.zeros(0, dtype), *(ids for ids, _ in encoded)], dtype=dtype, casting="unsafe"),
        word_starts=np.concatenate([np.zeros(0, bool), *(starts for _, starts in encoded)]),
        sentence_lengths=np.array([len(ids) for ids, _ in encoded], dtype=np.int64),
        document_lengths=np.array([len(document) for document in sentences], dtype=np.int64),
    )


class EncodingPool:
    """Encodes tasks in order, by worker processes or, with one process, by the calling one."""

    def __init__(self, tokenizer: Tokenizer, num_processes: int):
        self._tokenizer = tokenizer
        self._num_processes = num_processes
        self._executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> EncodingPool:
        if self._num_processes > 1:
            self._executor = ProcessPoolExecutor(
                self._num_processes,
                # A forked child would inherit the locks of the tokenizer's and torch's threads in whatever state.
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_start_worker,
                initargs=(self._tokenizer,),
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

    def map_documents(self, tasks: Iterator[Task]) -> Iterator[tuple[Task, EncodedText]]:
        """Iterate over the tasks with their encoded documents, in the order of the tasks, reading few tasks ahead.

        Raises:
            OSError: A worker process was killed.
        """
        if self._executor is None:
            for task in tasks:
                yield task, encode_documents(task.documents, self._tokenizer, parallel=True)
            return
        waiting: deque[tuple[Task, Future[EncodedText]]] = deque()
        try:
            for task in tasks:
                waiting.append((task, self._executor.submit(_encode_in_worker, task.documents)))
                if len(waiting) >= self._num_processes * _WAITING_PER_PROCESS:
                    first, future = waiting.popleft()
                    yield first, future.result()
            for task, future in waiting:
                yield task, future.result()
        except BrokenProcessPool as error:
            raise OSError(
                "a worker process of the encoding ended: expected it to live as long as there is text; if it ran out "
                "of memory, use fewer with --num-processes; if a script started it, that script needs "
                '`if __name__ == "__main__":`'
            ) from error


def available_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_worker_tokenizer: Tokenizer


def _start_worker(tokenizer: Tokenizer) -> None:
    global _worker_tokenizer
    _worker_tokenizer = tokenizer
    # Ctrl-C reaches every process of the terminal; the parent alone decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _encode_in_worker(documents: list[str]) -> EncodedText:
    return encode_documents(documents, _worker_tokenizer, parallel=False)
