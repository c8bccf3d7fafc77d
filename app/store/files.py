"""The files of a run: those that can be downloaded, and readers for step losses and the end of the log."""

from __future__ import annotations

import io
from pathlib import Path

from sqlmodel import Session

from app.schemas import FileOut, StepList
from app.store.epochs import epochs_csv, epochs_of
from app.store.tables import Run
from app.store.thinning import thin
from trainer.i18n import N_, _
from trainer.run_folder import RunFolder, iter_valid_events

FILES: dict[str, str] = {
    "config.json": N_("every choice of the run"),
    "run.json": N_("name, tags, notes"),
    "environment.json": N_("versions, device, fingerprints of the data"),
    "events.jsonl": N_("all events, in order"),
    "epochs.csv": N_("the numbers of every epoch"),
    "log.txt": N_("what the run printed"),
    "checkpoint-best.safetensors": N_("weights of the best epoch"),
    "checkpoint-last.safetensors": N_("weights and optimizer of the latest epoch, for resuming"),
    "predictions-last.safetensors": N_("predictions for every test image after the latest epoch"),
    "labels.npy": N_("true classes of the test images"),
    "train.png": N_("training images as the net sees them"),
}


def file_path(folder: RunFolder, name: str, run: Run) -> Path | None:
    """The path of a downloadable file; None for a name that is not in ``FILES``.

    ``epochs.csv`` does not exist on disk; it is created on request.
    """
    if name not in FILES:
        return None
    last, best = run.epochs_done, run.best_epoch or 0
    return {
        "checkpoint-best.safetensors": folder.checkpoint_path(best),
        "checkpoint-last.safetensors": folder.checkpoint_path(last),
        "predictions-last.safetensors": folder.predictions_path(last),
        "labels.npy": folder.labels_path,
        "train.png": folder.pictures / "train.png",
    }.get(name, folder.path / name)


def files_of(session: Session, folder: RunFolder, run: Run) -> list[FileOut]:
    """The files that can be downloaded now."""
    files = []
    for name, description in FILES.items():
        if name == "epochs.csv":
            size = len(epochs_csv(epochs_of(session, run.id)))
        else:
            path = file_path(folder, name, run)
            size = path.stat().st_size if path and path.is_file() else 0
        if size:
            files.append(FileOut(name=name, size=size, description=_(description)))
    return files


def steps_of(folder: RunFolder, max_points: int = 1000) -> StepList:
    """The step losses of a run, reduced to ``max_points`` with the extremes kept.

    If several attempts have the same step, the latest one counts.
    """
    losses: dict[int, float] = {}
    for event, _end in iter_valid_events(folder.events_path):
        if event["type"] == "started":
            first = (event["first_epoch"] - 1) * event["steps_per_epoch"]
            losses = {step: loss for step, loss in losses.items() if step <= first}
        elif event["type"] == "step":
            losses.update((int(step), loss) for step, loss in event["losses"])
    steps = sorted(losses)
    kept = [steps[i] for i in thin([losses[step] for step in steps], max_points)]
    return StepList(steps=kept, losses=[losses[step] for step in kept])


def log_tail(folder: RunFolder, max_bytes: int = 64_000) -> str:
    """The last ``max_bytes`` of the log, starting at the beginning of a line."""
    try:
        with folder.log_path.open("rb") as file:
            file.seek(0, io.SEEK_END)
            start = max(file.tell() - max_bytes, 0)
            file.seek(start)
            data = file.read()
    except FileNotFoundError:
        return ""
    if start:
        data = data.partition(b"\n")[2]
    return data.decode("utf-8", errors="replace")
