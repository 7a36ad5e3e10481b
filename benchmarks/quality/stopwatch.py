"""Times of a run: by the clock, and of the processor."""

import time


class Stopwatch:
    """Runs from when it is made until `stop`."""

    def __init__(self) -> None:
        self._began = time.perf_counter(), time.process_time()
        self.seconds = self.cpu_seconds = 0.0
        """By the clock, and of the processor, all threads of this process together: other work disturbs it less."""
        self.steps = 0
        """Of the optimizer meanwhile."""

    def stop(self) -> None:
        """Take the times."""
        self.seconds, self.cpu_seconds = (
            now - then for now, then in zip((time.perf_counter(), time.process_time()), self._began, strict=True)
        )
