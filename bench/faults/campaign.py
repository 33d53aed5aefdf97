"""What a campaign is made of: a piece of work that can be begun again, and faults that interrupt it.

Work runs in a forked process, which is killed, or whose disk, clock or file handles are taken away. Afterwards it runs
once more without a fault, and what is on disk then must be what an undisturbed run leaves: nothing lost, nothing
doubled. A fault that does not kill must end the work with a line of its own (exit code 2, no traceback) or not at all.

Disks that fill up or can't be written are small tmpfs mounts: run as root, or under ``unshare -rm``.
"""

import contextlib
import hashlib
import importlib
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

Content = dict[str, str | np.ndarray]


@dataclass(frozen=True)
class Work:
    """Something that is begun in a folder, may be interrupted, and is begun again in the same folder.

    Attributes:
        run: does it, in a process of its own; returns the exit code of a command.
        content: what the folder holds that must be the same after any interruption, name -> digest or pixels.
    """

    name: str
    run: Callable[[Path], int]
    content: Callable[[Path], Content]


@dataclass
class Outcome:
    """What a campaign of one fault on one work has found."""

    work: str
    fault: str
    faults: int = 0  # how often the fault struck
    rounds: int = 0  # times that the work was brought to its end after it
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    def line(self) -> str:
        counts = f"{self.faults:4} faults, {self.rounds:3} ends, {self.seconds:5.0f} s"
        return f"{self.work:12} {self.fault:8} {counts}: {len(self.problems) or 'no'} problem(s)"


# ------------------------------------------------------------------------------------------------------ processes


@dataclass
class Child:
    """A forked process that does some work; what it prints goes to a file."""

    pid: int
    log: Path
    code: int | None = None

    def wait(self) -> int:
        """Its exit code; minus the signal's number if one ended it."""
        if self.code is None:
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code

    @property
    def alive(self) -> bool:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is None

    def kill(self, after_s: float) -> bool:
        """``kill -9`` after some time; whether it was still at work then."""
        end = time.monotonic() + after_s
        while time.monotonic() < end:
            if not self.alive:
                return False
            time.sleep(0.002)
        os.kill(self.pid, signal.SIGKILL)
        return self.wait() == -signal.SIGKILL

    @property
    def told(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")


def start(run: Callable[[], int | None], log: Path, before: Callable[[], object] = bool) -> Child:
    """Fork a process that calls ``before``, then ``run``. This process must have no threads."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return Child(pid, log)
    code = 70
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.close(out)
        before()
        code = run() or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def digests(folder: Path, pattern: str = "**/*") -> Content:
    """SHA-256 of every file of a folder, by its path in it."""
    files = sorted(path for path in folder.glob(pattern) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def pixels(folder: Path, pattern: str) -> Content:
    """The pixels [H, W, 3] of images of a folder, by their path in it."""
    return {str(path.relative_to(folder)): np.asarray(Image.open(path)).astype(int) for path in folder.glob(pattern)}


def same(found: str | np.ndarray, expected: str | np.ndarray) -> bool:
    """Whether two things are equal; pixels may differ by one of 256 levels, as drawing beside other images does."""
    if isinstance(found, np.ndarray) and isinstance(expected, np.ndarray):
        return found.shape == expected.shape and bool((abs(found - expected) <= 1).all())
    return bool(found == expected)


# -------------------------------------------------------------------------------------------------------- a campaign


class Campaign:
    """All faults on one work, in ``base``: its folder is always ``base/work``, so that paths never differ."""

    def __init__(self, work: Work, base: Path, seed: int = 0, limit_s: float = math.inf) -> None:
        """``limit_s``: no fault is tried again after so many seconds."""
        self.limit_s, self.end = limit_s, math.inf
        self.work, self.base, self.rng = work, base, random.Random(f"{seed} {work.name}")
        self.folder, self.log = base / "work", base / "log.txt"
        self._import_modules()
        self._clear()
        began = time.monotonic()
        self._must_succeed(self._begin())
        self.seconds = time.monotonic() - began
        self.expected = work.content(self.folder)
        self.bytes = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        assert self.expected, f"{work.name} leaves nothing to compare"
        self._clear()

    def _must_succeed(self, child: Child) -> None:
        assert child.wait() == 0, f"{self.work.name} fails undisturbed: {child.told[-2000:]}"

    def _import_modules(self) -> None:
        """Import what the work imports, so that forked processes need not: kills then fall into the work itself."""
        names = self.base / "modules.txt"

        def run() -> int:
            code = self.work.run(self.folder)
            names.write_text("\n".join(sorted(sys.modules)), encoding="utf-8")
            return code

        self._must_succeed(start(run, self.log))
        for name in names.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ImportError):  # some packages make up names
                importlib.import_module(name)

    def _begin(self, before: Callable[[], object] = bool, log: str = "log.txt") -> Child:
        return start(lambda: self.work.run(self.folder), self.base / log, before)

    def _clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        for leftover in self.base.glob(f".tmp-*-{self.folder.name}"):
            shutil.rmtree(leftover)

    def _ended_properly(self, child: Child, outcome: Outcome) -> None:
        if child.wait() not in (0, 2) or "Traceback" in child.told:
            outcome.problems.append(f"exit code {child.code}: {child.told[-1500:]}")

    def _finish(self, outcome: Outcome) -> None:
        """Without a fault now: it must end well, and leave what an undisturbed run leaves."""
        child = self._begin()
        outcome.rounds += 1
        if child.wait() != 0:
            outcome.problems.append(f"does not go on: exit code {child.code}: {child.told[-1500:]}")
            return
        self._compare(outcome)

    def _compare(self, outcome: Outcome) -> None:
        found = self.work.content(self.folder)
        for what, names in (
            ("lost", self.expected.keys() - found.keys()),
            ("too much", found.keys() - self.expected.keys()),
            (
                "changed",
                {name for name in self.expected.keys() & found.keys() if not same(found[name], self.expected[name])},
            ),
        ):
            if names:
                outcome.problems.append(f"{what}: {', '.join(sorted(names)[:5])} ({len(names)})")
        if leftovers := [str(path.relative_to(self.base)) for path in self.base.rglob(".tmp-*")]:
            outcome.problems.append(f"left behind: {', '.join(leftovers[:5])} ({len(leftovers)})")

    @contextlib.contextmanager
    def _measured(self, fault: str) -> Iterator[Outcome]:
        outcome, began = Outcome(self.work.name, fault), time.monotonic()
        self.end = began + self.limit_s
        yield outcome
        outcome.seconds = time.monotonic() - began

    def _times(self, count: int) -> Iterator[int]:
        """0, 1, ... below ``count``, while there is time."""
        for number in range(count):
            if time.monotonic() < self.end:
                yield number

    def kill(self, count: int) -> Outcome:
        """``kill -9`` at random moments, early ones more often (more kills fit into a minute); killed again and again
        until it comes to an end, then anew."""
        with self._measured("kill") as outcome:
            while outcome.faults < count and time.monotonic() < self.end:
                child = self._begin()
                if child.kill(1.1 * self.seconds * self.rng.random() ** 2):
                    outcome.faults += 1
                    if outcome.faults < count and time.monotonic() < self.end and self.rng.random() < 0.8:
                        continue
                    self._finish(outcome)
                elif child.code != 0:
                    outcome.problems.append(f"does not go on: exit code {child.code}: {child.told[-1500:]}")
                else:
                    outcome.rounds += 1
                    self._compare(outcome)
                self._clear()
        return outcome

    def disk(self, count: int) -> Outcome:
        """A disk that is too small for the work; then it grows."""
        with self._measured("disk") as outcome:
            for _ in self._times(count):
                pages = max(4, int(self.rng.uniform(0, 1.0) * self.bytes) // 4096)
                with tmpfs(self.folder, f"size={4096 * pages}"):
                    child = self._begin()
                    self._ended_properly(child, outcome)
                    outcome.faults += child.wait() != 0
                    remount(self.folder, f"size={max(64 << 20, 4 * self.bytes)}")
                    self._finish(outcome)
                self._clear()
        return outcome

    def readonly(self, count: int) -> Outcome:
        """A disk that can't be written any more from some moment on."""
        with self._measured("readonly") as outcome:
            for number in self._times(count):
                with tmpfs(self.folder, f"size={max(64 << 20, 4 * self.bytes)}"):
                    if number:  # the first time it is from the start
                        self._begin().kill(self.rng.uniform(0, self.seconds))
                    remount(self.folder, "ro")
                    child = self._begin()
                    self._ended_properly(child, outcome)
                    outcome.faults += child.wait() != 0
                    remount(self.folder, "rw")
                    self._finish(outcome)
                self._clear()
        return outcome

    def handles(self, count: int) -> Outcome:
        """Too few file handles."""
        with self._measured("handles") as outcome:
            for _ in self._times(count):
                limit = len(os.listdir("/proc/self/fd")) + self.rng.randrange(0, 12)
                child = self._begin(lambda limit=limit: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)))
                self._ended_properly(child, outcome)
                outcome.faults += child.wait() != 0
                self._finish(outcome)
                self._clear()
        return outcome

    def twice(self, count: int) -> Outcome:
        """Two at once in the same folder: one is refused, or both get there."""
        with self._measured("twice") as outcome:
            for _ in self._times(count):
                one = self._begin()
                time.sleep(self.rng.choice((0, 0.5 * self.rng.random() * self.seconds)))
                other = self._begin(log="other.txt")
                self._ended_properly(one, outcome)
                self._ended_properly(other, outcome)
                outcome.faults += 1
                if one.code and other.code:
                    outcome.problems.append(f"both refused: {one.told[-300:]} {other.told[-300:]}")
                self._finish(outcome)
                self._clear()
        return outcome

    def clock(self, count: int) -> Outcome:
        """The clock (Python's ``time.time``) is set back three days while it works, and then it is killed."""
        with self._measured("clock") as outcome:
            for _ in self._times(count):
                moment = self.rng.uniform(0, self.seconds)
                child = self._begin(lambda moment=moment: set_clock_back(moment, 3 * 24 * 3600))
                child.kill(moment + self.rng.uniform(0, self.seconds))
                outcome.faults += 1
                self._finish(outcome)
                self._clear()
        return outcome


# ------------------------------------------------------------------------------------------------------- disks, clock


@contextlib.contextmanager
def tmpfs(folder: Path, options: str) -> Iterator[None]:
    """A small disk at ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    """Make it larger, or not to be written."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def set_clock_back(after_s: float, by_s: float) -> None:
    """Make this process's clock jump back in a while; the monotonic one goes on, as it does when a clock is set."""
    usual, moment = time.time, time.monotonic() + after_s
    time.time = lambda: usual() - (by_s if time.monotonic() > moment else 0)
    time.time_ns = lambda: int(time.time() * 1e9)
