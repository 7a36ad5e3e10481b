"""Commands that are given a time: what they started ends with them."""

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from benchmarks.environment import ROOT


def run_within(command: Sequence[str], seconds: float, *, grace_seconds: float = 0.0, **options) -> int | None:
    """Run a command and return its exit status; None where its time was up.

    It is the first of a process group. When its time is up, the group is interrupted as by Ctrl-C, so that it may write
    down what it has; what is left of the group in the end is killed, however the command ended: a process that waits
    for a kernel, or compiles one, would stay, and keep the GPU's memory.

    Args:
        command: program and arguments, run in the project's root.
        seconds: its time.
        grace_seconds: between the interruption and the end; 0: no interruption.
        options: further ones of `subprocess.Popen`.
    """
    # What runs in the background of a shell, as under nohup, ignores interruptions, and so would all that it starts.
    heeded = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True, preexec_fn=heeded, **options) as process:
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            if grace_seconds > 0:
                _send(process.pid, signal.SIGINT)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(grace_seconds)
            return None
        finally:
            _send(process.pid, signal.SIGKILL)


def _send(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)
