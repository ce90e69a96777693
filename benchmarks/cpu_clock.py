"""CPU seconds of this process, by part."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """CPU seconds of this process by part; a part within another is counted for itself alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._open = ["the rest"]
        self._last = time.process_time()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Whatever runs inside belongs to `name`."""
        self.stop()
        self._open.append(name)
        try:
            yield
        finally:
            self.stop()
            self._open.pop()

    def stop(self) -> None:
        """Count up to now."""
        now = time.process_time()
        name = self._open[-1]
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now
