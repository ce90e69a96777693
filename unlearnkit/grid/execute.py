"""Commands in processes of their own, some at a time; what becomes of one does not touch the others."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

_LEASH = Path(__file__).with_name("leash.py")
_POLL_SECONDS = 0.2
_PATIENCE_SECONDS = 15.0  # for a run to end after it was told to


@dataclass(frozen=True)
class Order:
    """A command line of `unlearnkit`, and where its output goes."""

    name: str
    arguments: tuple[str, ...]
    log: Path


@dataclass(frozen=True)
class Outcome:
    """How a command ended; `error` is None where it ended well."""

    seconds: float
    error: str | None = None


class Process(Protocol):
    """A started command."""

    def poll(self) -> int | None:
        """Its exit code (negative: the signal that ended it); None while it runs."""

    def interrupt(self) -> None:
        """Tell it and all that it started to end, as Ctrl-C does."""

    def stop(self) -> None:
        """Return when it has ended; end it by force where it does not."""


#: (command line, log, environment) -> the started command
Start = Callable[[Sequence[str], Path, Mapping[str, str]], Process]


class Watch(Protocol):
    """Is told what happens."""

    def began(self, order: Order) -> None:
        """A command was started."""

    def ended(self, order: Order, outcome: Outcome) -> None:
        """A command has ended."""

    def tick(self) -> None:
        """Some time has passed."""


def execute(orders: Sequence[Order], watch: Watch, *, jobs: int = 1, start: Start | None = None) -> None:
    """Run every command, `jobs` at a time. When this is interrupted, the running ones are stopped first."""
    start = start or start_process
    waiting, running = deque(orders), dict[int, tuple[Order, Process, float]]()
    environments = [environment(slot, jobs) for slot in range(min(jobs, len(orders)))]
    try:
        while waiting or running:
            for slot, variables in enumerate(environments):
                if slot not in running and waiting:
                    order = waiting.popleft()
                    order.log.parent.mkdir(parents=True, exist_ok=True)
                    command = [sys.executable, "-m", "unlearnkit", *order.arguments]
                    running[slot] = (order, start(command, order.log, variables), time.perf_counter())
                    watch.began(order)
            ended = [(slot, code) for slot in running if (code := running[slot][1].poll()) is not None]
            for slot, code in ended:
                order, _, started = running.pop(slot)
                watch.ended(order, Outcome(time.perf_counter() - started, reason(code, order.log)))
            watch.tick()
            if not ended:
                time.sleep(_POLL_SECONDS)
    finally:
        for _, process, _ in running.values():
            process.interrupt()
        for _, process, _ in running.values():
            process.stop()


class _Child:
    """A process in a group of its own, so that Ctrl-C at a terminal reaches it through `stop` alone."""

    def __init__(self, command: Sequence[str], log: Path, variables: Mapping[str, str]) -> None:
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, str(_LEASH), str(os.getpid()), *command],
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                env=dict(variables), start_new_session=True,
            )  # fmt: skip

    def poll(self) -> int | None:
        return self.process.poll()

    def interrupt(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)

    def stop(self) -> None:
        try:
            self.process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def start_process(command: Sequence[str], log: Path, variables: Mapping[str, str]) -> Process:
    """Start a command that dies with this process."""
    return _Child(command, log, variables)


def environment(slot: int, jobs: int) -> dict[str, str]:
    """The environment of the commands in one of `jobs` places: its share of the cores, and its GPU."""
    variables = dict(os.environ)
    variables.pop("UNLEARNKIT_LAUNCHED", None)
    package = Path(__file__).resolve().parents[2]
    places = [str(Path(p).resolve()) for p in variables.get("PYTHONPATH", "").split(os.pathsep) if p]
    if package.name not in ("site-packages", "dist-packages") and str(package) not in places:
        places.append(str(package))
    if places:
        variables["PYTHONPATH"] = os.pathsep.join(places)
    variables["PYTHONUNBUFFERED"] = "1"
    variables.setdefault("TQDM_MININTERVAL", "10")  # a log is no screen
    if jobs > 1:
        variables.setdefault("OMP_NUM_THREADS", str(max(1, _cores() // jobs)))
        if len(gpus := _gpus()) > 1:
            variables["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    return variables


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def _gpus() -> list[str]:
    """The GPUs that may be used, as CUDA_VISIBLE_DEVICES names them."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [one.strip() for one in named.split(",") if one.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def reason(code: int, log: Path) -> str | None:
    """Why a command failed, in one line: its last error, else what it said last; None where it did not."""
    if code == 0:
        return None
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    if said := [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]:
        return said[-1]
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        hint = " (out of memory, perhaps)" if -code == signal.SIGKILL else ""
        return f"killed by {name}{hint}"
    return f"{lines[-1] if lines else 'it said nothing'} (exit code {code})"
