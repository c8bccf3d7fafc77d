"""What the command line draws: progress of runs, tables of runs and of a comparison."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from app.words import accuracy_with_interval
from trainer.config import MODELS
from trainer.i18n import _

if TYPE_CHECKING:
    from app.cli.client import Client

console = Console(highlight=False)
_WATCH_SECONDS = 0.2


def progress_bars() -> Progress:
    """Bars for runs: name, position, time left, last accuracy."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
    )


@contextmanager
def passing_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar, set by calls with (done, total). It is shown on terminals only, and removed at the end."""
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bars:
        bar = bars.add_task(title, total=None)
        yield lambda done, total: bars.update(bar, completed=done, total=total)


class RunBar:
    """One run's line in the progress display, moved by its JSON or by its events."""

    def __init__(self, bars: Progress, name: str) -> None:
        self.bars = bars
        self.task: TaskID = bars.add_task(name, total=None, note="", start=True)
        self._phase_total = 0

    def show_run(self, run: Mapping[str, Any]) -> None:
        """Move to what ``GET /runs/{id}`` says."""
        progress = run["progress"] or {}
        if run["status"] == "finished":
            self.bars.update(self.task, total=1, completed=1)
        elif progress.get("total_steps"):
            self.bars.update(self.task, total=progress["total_steps"], completed=progress["step"])
        phase = progress.get("phase")
        self.bars.update(self.task, note=_phase(phase) if phase else note_of(run))

    def show_event(self, event: Mapping[str, Any]) -> None:
        """Move to what one event says."""
        match event["type"]:
            case "started":
                self.bars.update(self.task, total=event["total_steps"], note="")
            case "progress":
                self.bars.update(self.task, note=_phase(event))
            case "step":
                self.bars.update(self.task, completed=event["step"])
            case "epoch":
                note = _("epoch {epoch}: {accuracy} %").format(
                    epoch=event["epoch"], accuracy=f"{100 * event['test_accuracy']:.2f}"
                )
                self.bars.update(self.task, completed=event["step"], note=note)
            case "failed":
                self.bars.update(self.task, note=event["message"])


def _phase(phase: Mapping[str, Any]) -> str:
    words = {"download": _("downloading"), "cache": _("reading images"), "import": _("importing")}
    share = f" {100 * phase['done'] / phase['total']:.0f} %" if phase.get("total") else ""
    return words.get(str(phase["what"]), "") + share


def note_of(run: Mapping[str, Any]) -> str:
    """Status and last accuracy, or the failure's sentence."""
    if run["status"] == "failed":
        return str(run["error"]["message"])
    accuracy = f" {100 * run['test_accuracy']:.2f} %" if run["test_accuracy"] is not None else ""
    return _(run["status"]) + accuracy


def accuracy_of(run: Mapping[str, Any]) -> str:
    """``94.50 (94.04 to 94.93)``: per cent with the 95 % Wilson interval, empty before the first epoch."""
    if run["test_accuracy"] is None:
        return ""
    return accuracy_with_interval(run["test_accuracy"], run["test_accuracy_interval"])


_WIDE = 110  # characters; narrower terminals leave out what the name usually says


def runs_table(runs: Iterable[Mapping[str, Any]], title: str | None = None) -> Table:
    """Runs with what matters most, in 80 characters where names are short."""
    table = Table(title=title, title_justify="left", padding=(0, 1 if console.width >= _WIDE else 0))
    columns = [
        ("id", _("Id")),
        ("name", _("Name")),
        ("status", _("Status")),
        ("model", _("Model")),
        ("dataset", _("Data set")),
        ("parameters", _("Parameters")),
        ("epochs", _("Epochs")),
        ("accuracy", _("Test accuracy, %")),
        ("time", _("Time, s")),
    ]
    shown = [(key, title) for key, title in columns if console.width >= _WIDE or key not in ("model", "dataset")]
    for key, column in shown:
        numeric = key in ("parameters", "epochs", "accuracy", "time")
        table.add_column(column, justify="right" if numeric else "left", no_wrap=key != "name", overflow="fold")
    for run in runs:
        cells = _cells(run)
        table.add_row(*(cells[key] for key, _title in shown))
    return table


def _cells(run: Mapping[str, Any]) -> dict[str, str]:
    model = MODELS.get(run["model"])
    return {
        "id": run["id"],
        "name": escape(run["name"]),
        "status": _(run["status"]),
        "model": _(model.title) if model else run["model"],
        "dataset": run["dataset"],
        "parameters": f"{run['num_parameters']:,}" if run["num_parameters"] else "",
        "epochs": f"{run['epochs_done']}/{run['epochs']}",
        "accuracy": accuracy_of(run),
        "time": f"{run['train_seconds']:.1f}",
    }


def show_comparison(comparison: Mapping[str, Any]) -> None:
    """Every verdict as a sentence with its evidence, pairs first, recipes after them."""
    console.print(runs_table(comparison["runs"]))
    for pair in comparison["pairs"]:
        console.print(f"\n[bold]{escape(pair['heading'])}[/bold]\n{escape(pair['explanation'])}")
        if pair["evidence"]:
            console.print(escape(pair["evidence"]))
    for recipe in comparison["recipes"]:
        console.print(f"\n[bold]{_('Recipes')}: {escape(recipe['heading'])}[/bold]\n{escape(recipe['explanation'])}")
    for difference in comparison["config_differences"]:
        values = ", ".join(str(value) for value in difference["values"])
        console.print(f"{difference['field']}: {values}")


def follow_runs(client: Client, run_ids: Sequence[str]) -> int:
    """Draw the runs until all have ended; status 1 if one did not finish. Ctrl-C only stops watching."""
    ended = watch_runs(client, run_ids)
    console.print(runs_table(ended))
    return 0 if all(run["status"] == "finished" for run in ended) else 1


def watch_runs(client: Client, run_ids: Sequence[str]) -> list[dict[str, Any]]:
    """Draw runs of a server until all have ended; returns them in order and prints why a run failed."""
    ended: dict[str, dict[str, Any]] = {}
    with progress_bars() as bars:
        shown = {run_id: RunBar(bars, client.run(run_id)["name"] or run_id) for run_id in run_ids}
        while len(ended) < len(shown):
            for run_id, bar in shown.items():
                if run_id not in ended:
                    run = client.run(run_id)
                    bar.show_run(run)
                    if run["status"] not in ("queued", "running"):
                        ended[run_id] = run
            if len(ended) < len(shown):
                time.sleep(_WATCH_SECONDS)
    for run in ended.values():
        if run["error"]:
            console.print(f"{run['name']}: {run['error']['message']} {run['error']['advice']}")
    return [ended[run_id] for run_id in run_ids]
