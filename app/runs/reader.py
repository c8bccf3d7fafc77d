"""Reads many run folders into the index in a separate process, so that pages and the queue do not wait.

A thread of the server would hold the interpreter's lock for milliseconds at a time, and delay every request.
"""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.errors import Problem
from app.schemas import IndexProgress
from trainer.i18n import _
from trainer.interpreter import python_command

Report = Callable[[IndexProgress], None]


class Reader:
    """Starts the process ``app.runs.read_many`` and relays its progress. One process reads at a time."""

    def __init__(self, database: Path, runs: Path) -> None:
        self._arguments = [str(database), str(runs)]
        self._one_at_a_time = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._is_ending = False

    def begin(self, report: Report, on_end: Callable[[bool], None], *, everything: bool = False) -> None:
        """Read the new folders, or all, in the background.

        ``on_end`` is called whatever happens, with whether none of them has to be looked at again.
        """

        def read() -> None:
            is_complete = False
            try:
                is_complete = bool(self._read(["--all"] if everything else [], report))
            finally:
                on_end(is_complete)

        try:
            threading.Thread(target=read, name="reader", daemon=True).start()
        except RuntimeError:  # too many threads
            on_end(False)
            raise

    def rebuild(self, report: Report) -> int:
        """Read all folders again; returns the number of runs. Raises ``Problem`` if the process ends early."""
        count = self._read(["--all"], report)
        if count is None:
            message = _("Reading the run folders was interrupted. Try again; the server's log has the details.")
            raise Problem(message, status=503)
        return count

    def end(self) -> None:
        """Stop the process, when the server ends."""
        self._is_ending = True
        if self._child is not None:
            self._child.terminate()

    def _read(self, options: list[str], report: Report) -> int | None:
        """What the process says in the end; None if it ended before it had read all folders."""
        with self._one_at_a_time:
            if self._is_ending:
                return None
            command = python_command("app.runs.read_many", *options, *self._arguments)
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as self._child:
                assert self._child.stdout is not None
                for line in self._child.stdout:
                    message: dict[str, Any] = json.loads(line)
                    if "result" in message:
                        return int(message["result"])
                    report(IndexProgress(**message))
            return None
