"""What the terminal shows while requests run: texts as they are written, a progress bar for each image.

With one request at a time its texts appear piece by piece; with several together each text appears when whole.
"""

import re
from collections import Counter
from types import TracebackType
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from irg.critics import Verdict
from irg.reasoning.events import CandidateDone, DenoiseStep, Event, ImageDone, TextDelta, TextDone, WaitDone

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Display:
    """Shows events; use it as a context manager, so that the terminal is left in order."""

    def __init__(
        self,
        prompts: list[str],
        concurrent: int,
        to_stderr: bool = False,
        quiet: bool = False,
        task: Literal["generate", "improve", "edit", "ask"] = "generate",
    ) -> None:
        self._console = Console(stderr=to_stderr, quiet=quiet, highlight=False, markup=False)
        self._prompts, self._task = prompts, task
        self._alone = concurrent == 1
        self._begun: set[int] = set()
        self._progress: Progress | None = None
        self._tasks: dict[tuple[int, int], TaskID] = {}
        self._writing: tuple[int, int] | None = None
        self._written: Counter[tuple[int, int, str]] = Counter()  # texts of a turn, by kind
        self._held: list[str] = []  # lines that wait until the text that is being written ends

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end_line()
        self._stop_progress()

    def note(self, text: str) -> None:
        """One dim line."""
        self._console.print(Text(safe(text), style="dim"), soft_wrap=True)

    def line(self, text: str) -> None:
        """One plain line, above the bars that are still running."""
        self._end_line()
        if self._progress is not None and self._progress.finished:
            self._stop_progress()
        self._console.print(Text(safe(text)), soft_wrap=True)

    def error(self, text: str) -> None:
        """One line on standard error, whatever else is shown where."""
        self._end_line()
        self._stop_progress()
        Console(stderr=True, highlight=False, markup=False).print(Text(safe(text)), soft_wrap=True)

    def show(self, event: Event) -> None:
        """Show one event (not Finished or Failed, which the caller reports)."""
        self._begin(event.request)
        if isinstance(event, TextDelta) and self._alone:
            self._open(event)
            self._console.print(Text(safe(event.text)), end="", soft_wrap=True)
        elif isinstance(event, TextDone):
            if self._writing == (event.request, event.turn):
                self._end_line()
            else:
                line = Text.assemble((self._heading(event), "cyan"), safe(event.text))
                self._console.print(line, soft_wrap=True)
            self._written[event.request, event.turn, event.kind] += 1
        elif isinstance(event, WaitDone):
            self._verdict(event)
        elif isinstance(event, DenoiseStep):
            self._step(event)
        elif isinstance(event, ImageDone):
            self._finish((event.request, event.turn))
        elif isinstance(event, CandidateDone):
            images = len(event.trajectory.images)
            what = f"candidate {event.candidate + 1} is drawn ({'1 image' if images == 1 else f'{images} images'})"
            self._held.append(self._label(event.request) + what)
            if self._writing is None:
                self._print_held()

    def _verdict(self, event: WaitDone) -> None:
        """What a critic said of the newest image, if that is what was waited for."""
        if isinstance(verdict := event.result, Verdict):
            self.line(f"{self._label(event.request)}The critic on image {event.turn}: {verdict.found}")

    def _begin(self, request: int) -> None:
        if request in self._begun:
            return
        self._begun.add(request)
        self._end_line()
        prompt = self._prompts[request]
        shown = prompt if len(prompt) <= 300 else f"{prompt[:297]}..."
        self._console.print(Text(self._label(request) + safe(shown), style="bold"), soft_wrap=True)

    def _label(self, request: int) -> str:
        return f"[{request + 1}/{len(self._prompts)}] " if len(self._prompts) > 1 else ""

    def _heading(self, event: TextDelta | TextDone) -> str:
        before = self._written[event.request, event.turn, event.kind]
        number = f" ({before + 1})" if before else ""  # of thinkings that a critic did not accept, say
        return f"{self._label(event.request)}{event.kind.capitalize()}{number}: "

    def _open(self, event: TextDelta) -> None:
        if self._writing == (event.request, event.turn):
            return
        self._end_line()
        self._stop_progress()
        self._console.print(Text(self._heading(event), style="cyan"), end="")
        self._writing = (event.request, event.turn)

    def _end_line(self) -> None:
        if self._writing is not None:
            self._console.print()
            self._writing = None
            self._print_held()

    def _print_held(self) -> None:
        held, self._held = self._held, []
        for text in held:
            self.line(text)

    def _step(self, event: DenoiseStep) -> None:
        key = (event.request, event.turn)
        if self._progress is None:
            self._end_line()
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._progress = Progress(
                *columns, console=self._console, refresh_per_second=5, redirect_stdout=False, redirect_stderr=False
            )
            self._progress.start()
        if key not in self._tasks:
            later = f"Improved image {event.turn}" if event.turn > 1 else "Improved image"
            what = "Edited image" if self._task == "edit" else later if event.turn else "First image"
            name = self._label(event.request) + what
            self._tasks[key] = self._progress.add_task(name, total=event.total)
        self._progress.update(self._tasks[key], completed=event.step, total=event.total)

    def _finish(self, key: tuple[int, int]) -> None:
        if self._progress is None:
            return
        task = self._tasks.get(key)
        if task is not None:
            total = self._progress.tasks[self._progress.task_ids.index(task)].total
            self._progress.update(task, completed=total)
        if self._progress.finished:
            self._stop_progress()

    def _stop_progress(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
            self._tasks.clear()


def safe(text: str) -> str:
    """Text from a user or a model without anything that could steer the terminal."""
    return _CONTROL.sub("�", text)
