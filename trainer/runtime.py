"""One attempt of a run in its own process: all side effects around the engine's loop.

It takes the run's lock, prepares the data set, resumes, saves, writes the log, and records how the attempt ended as an
event. Files are saved in an order that guarantees that an epoch is complete if and only if its event is written. Only
files in the run's folder and the cache of the data set are written.
"""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

import torch

from trainer import checkpoint, engine, loader, pictures
from trainer.config import RunConfig
from trainer.damage import damage_of
from trainer.datasets import catalogue, integrity, worker
from trainer.datasets.errors import DatasetDamaged
from trainer.environment import Environment, apply, kind_of_machine, resolve, resolve_device
from trainer.events import Cancelled, Epoch, Event, Failed, Finished, Progress, Started, Step
from trainer.failures import DatasetChanged, DatasetMissing, describe
from trainer.heartbeat import Heartbeat
from trainer.home import home
from trainer.i18n import _, ngettext
from trainer.image_rules import check_data
from trainer.precision import explain_precision
from trainer.run_folder import EventWriter, RunFolder, iter_valid_events

FINISHED, NOT_WRITTEN, ALREADY_RUNNING, DAMAGED = 0, 1, 3, 4  # exit statuses
_SECONDS_BETWEEN_PROGRESS = 0.25
Ending = Finished | Failed | Cancelled


class StopRequested(Exception):
    """Someone asked the run to stop, with the file ``stop`` or from the keyboard."""


def execute(
    folder: RunFolder,
    attempt: int,
    *,
    num_threads: int,
    on_locked: Callable[[], None] | None = None,
    device: str | None = None,
    echo: Callable[[str], None] | None = None,
) -> int:
    """Run one attempt to its end in this process, and return the exit status.

    ``on_locked`` is called once this process holds the run's lock, ``device`` is what ``auto`` stands for, and ``echo``
    receives each line of the log. Exit status 0: the event log says how the attempt ended. 1: that could not be
    written. 3: another process holds the run's lock, and nothing was done.
    """
    lock = folder.acquire_lock()
    if lock is None:
        return ALREADY_RUNNING
    if on_locked is not None:
        on_locked()
    with lock, contextlib.suppress(OSError), Log(folder.log_path, echo) as log:
        problems = damage_of(folder)
        if problems:
            message = _("The run folder is damaged, so nothing was started. {problems}")
            log.line(message.format(problems=" ".join(problems)))
            return DAMAGED
        run = Attempt(folder, attempt, num_threads, device, log)
        run.perform()
        return FINISHED
    return NOT_WRITTEN


class Log:
    """Appends lines to ``log.txt``. A line that can't be written is lost, but the run continues."""

    def __init__(self, path: Path, echo: Callable[[str], None] | None) -> None:
        self._path, self._echo = path, echo
        self._file: IO[str] | None = None

    def __enter__(self) -> Log:
        self._file = self._path.open("a", encoding="utf-8", buffering=1)
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(OSError):
            if self._file is not None:
                self._file.close()

    def line(self, text: str) -> None:
        if self._echo is not None:
            self._echo(text)
        with contextlib.suppress(OSError):
            assert self._file is not None
            self._file.write(text + "\n")


@dataclass
class History:
    """The epochs completed by earlier attempts, and the one to resume from."""

    lines: dict[int, dict[str, object]] = field(default_factory=dict)  # epoch -> its latest event
    resume: checkpoint.State | None = None
    damaged: list[int] = field(default_factory=list)

    @classmethod
    def read(cls, folder: RunFolder) -> History:
        """Read the events and find the latest epoch whose checkpoint has the hashes in its event.

        Later epochs are trained again, with the same results; their new events replace the old ones, as in the index.
        """
        events = (event for event, _end in iter_valid_events(folder.events_path))
        lines = {event["epoch"]: event for event in events if event["type"] == "epoch"}
        damaged: list[int] = []
        for epoch in sorted(lines, reverse=True):
            if checkpoint.is_intact(folder, epoch, lines[epoch].get("files", {})):
                before = {number: line for number, line in lines.items() if number <= epoch}
                return cls(before, checkpoint.load(folder, epoch), damaged)
            if folder.checkpoint_path(epoch).exists():
                damaged.append(epoch)
        return cls({}, None, damaged)


class Attempt:
    """One attempt of a run; call ``perform`` once."""

    def __init__(self, folder: RunFolder, attempt: int, num_threads: int, device: str | None, log: Log) -> None:
        self.folder, self.attempt, self.num_threads, self.device, self.log = folder, attempt, num_threads, device, log
        self.epochs_done = 0
        self.best_epoch, self.best_accuracy = 0, -1.0
        self.steps_per_epoch, self.num_train = 1, 1
        self.heartbeat = Heartbeat(folder.heartbeat_path)

    def perform(self) -> None:
        """Train, then write the event that says how it ended. Raises ``OSError`` if the event can't be written."""
        checkpoint.remove_leftovers(self.folder)
        history_error: BaseException | None = None
        try:
            history = History.read(self.folder)
        except (OSError, ValueError) as error:
            history, history_error = History(), error
        self.folder.manifest_path.unlink(missing_ok=True)  # of an attempt that ended before its last line
        writer = EventWriter(self.folder.events_path, self.attempt)
        try:
            writer.write(self._ending(writer, history, history_error))
        finally:
            with contextlib.suppress(OSError):
                writer.close()

    def _ending(self, writer: EventWriter, history: History, error: BaseException | None) -> Ending:
        """Train, and return the event that says how it ended."""
        try:
            if error is not None:
                raise error
            return self._work(writer, history)
        except (StopRequested, KeyboardInterrupt):
            self.log.line(f"Stopped on request after {_epochs(self.epochs_done)}.")
            return Cancelled(self.epochs_done)
        except Exception as problem:
            failed = describe(problem)
            if failed.advice == _("See the log."):
                self.log.line("".join(traceback.format_exception(problem)).rstrip())
            self.log.line(f"Failed: {failed.message} {failed.advice}")
            return failed

    def _work(self, writer: EventWriter, history: History) -> Finished:
        config = self.folder.read_config()
        self._between_batches()
        self._prepare_data(config, writer)
        environment = self._environment(config)
        data = loader.load(home(), config, torch.device(environment.device))
        self._recall(history)
        with contextlib.closing(engine.train(config, data, environment, history.resume)) as events:
            for event in events:
                if event is not None:
                    if isinstance(event, Finished):
                        self._finish(event)
                        return event
                    self._handle(event, writer, config, data)
                self._between_batches()
        raise AssertionError("the engine ends with Finished")

    def _between_batches(self) -> None:
        """Give a sign of life. Raises ``StopRequested`` if a person asked for it."""
        self.heartbeat.beat()
        if self.folder.stop_requested():
            raise StopRequested

    # before the first step
    def _prepare_data(self, config: RunConfig, writer: EventWriter) -> None:
        """Fill the cache if it is empty, check that it is whole, and check the config against the images."""
        dataset = catalogue.get_dataset(home(), config.dataset)
        if dataset.status == "damaged":
            raise DatasetDamaged(dataset.problem, dataset.advice)
        if dataset.status != "ready":
            self.log.line(f"Preparing {dataset.title} ...")
            for progress in _thinned(worker.prepare(home(), config.dataset)):
                if progress is not None:
                    writer.write(progress)
                self._between_batches()
            dataset = catalogue.get_dataset(home(), config.dataset)
        if dataset.image_shape is None or dataset.num_train is None:
            raise DatasetMissing(
                _("{dataset} is not on this machine.").format(dataset=dataset.title),
                _("Import or download it, then resume."),
            )
        integrity.verify(home(), config.dataset, self._between_batches)
        channels, height, width = dataset.image_shape
        check_data(config, image_size=(height, width), num_channels=channels, num_train=dataset.num_train)

    def _environment(self, config: RunConfig) -> Environment:
        """Decide the environment in the first attempt or read it in later ones, and apply it to this process."""
        dataset = catalogue.get_dataset(home(), config.dataset)
        fingerprints = (dataset.train_fingerprint or "", dataset.test_fingerprint or "")
        assert dataset.image_shape is not None
        stored = self.folder.read_environment()
        if stored is not None:
            environment = Environment.from_json(stored)
            resolve_device(environment.device)
            if fingerprints != (environment.train_fingerprint, environment.test_fingerprint):
                raise DatasetChanged(
                    _("The images of {dataset} are not those that this run started with.").format(
                        dataset=config.dataset
                    ),
                    _("Start a new run on the current images."),
                )
            if environment.torch != str(torch.__version__):
                self.log.line(f"Note: started with PyTorch {environment.torch}, continuing with {torch.__version__}.")
        else:
            environment = resolve(
                config,
                dataset.image_shape,
                home(),
                num_threads=self.num_threads,
                device=self.device,
                fingerprints=fingerprints,
            )
            self.folder.write_environment(environment.to_json())
            why = explain_precision(home(), config, dataset.image_shape, environment.to_json())
            if why is not None:
                self.log.line(why)
        apply(environment)
        return environment

    def _recall(self, history: History) -> None:
        """Restore the best epoch from the events of earlier attempts."""
        for epoch in history.damaged:
            self.log.line(f"The checkpoint of epoch {epoch} is damaged; using the previous one.")
        for epoch, line in sorted(history.lines.items()):
            value = line.get("validation_accuracy")
            self._note(epoch, value if isinstance(value, float) else line["test_accuracy"])
        if history.resume is not None:
            self.log.line(f"Attempt {self.attempt} continues after epoch {history.resume.epoch}.")

    def _note(self, epoch: int, accuracy: object) -> None:
        """Record an epoch. The best one has the highest accuracy; of equal ones it is the earliest."""
        assert isinstance(accuracy, int | float)
        self.epochs_done = epoch
        if accuracy > self.best_accuracy:
            self.best_epoch, self.best_accuracy = epoch, accuracy

    # while training
    def _handle(self, event: Event, writer: EventWriter, config: RunConfig, data: loader.Data) -> None:
        if isinstance(event, Epoch):
            self._save(event, writer, checkpoint.save_labels(self.folder, data.test_labels.cpu().numpy()))
            return
        if isinstance(event, Started):
            stored = self.folder.read_environment() or {}
            event = replace(event, machine=kind_of_machine(event.device), environment=stored)
        writer.write(event)
        if isinstance(event, Started):
            self.steps_per_epoch, self.num_train = event.steps_per_epoch, event.num_train
            self.log.line(
                f"Training {config.model} on {config.dataset}: {event.num_parameters:,} parameters, {event.device}, "
                f"{event.precision}, threads: {event.num_threads}"
            )
        elif isinstance(event, Step):
            self._log_losses(event, config)
            if not (self.folder.pictures / "train.json").exists():
                pictures.save_training_images(self.folder, config, data)

    def _log_losses(self, event: Step, config: RunConfig) -> None:
        """Log losses in the notebook's format, with the part of the epoch seen before the batch of each loss."""
        total = f"{self.num_train:,}"
        for step, loss in event.losses:
            epoch, batch = divmod(int(step) - 1, self.steps_per_epoch)
            seen = batch * config.batch_size
            part = 100 * seen // self.num_train
            self.log.line(f"Train epoch {epoch + 1}: [{seen:{len(total)},}/{total} ({part:2} %)] loss {loss:.4f}")

    def _save(self, event: Epoch, writer: EventWriter, labels: dict[str, str]) -> None:
        """Save the checkpoint and the predictions, write the event that completes the epoch, then remove old files.

        ``labels`` is the path of the saved labels with its SHA-256.
        """
        begin = time.monotonic()
        files = labels | checkpoint.save(self.folder, event.state)
        files |= checkpoint.save_predictions(self.folder, event.epoch, event.predictions)
        seconds = time.monotonic() - begin
        writer.write(replace(event, save_seconds=seconds, files=files, state=None, predictions=None))
        validated = event.validation_accuracy is not None
        self._note(event.epoch, event.validation_accuracy if validated else event.test_accuracy)
        self.log.line(
            f"Test after epoch {event.epoch}: average loss {event.test_loss:.4f}, accuracy "
            f"{event.test_correct:,}/{event.test_total:,} ({100 * event.test_accuracy:.2f} %)"
        )
        checkpoint.prune(self.folder, {event.epoch - 1, event.epoch, self.best_epoch})
        row_bytes = checkpoint.log_probability_bytes(event.predictions)
        checkpoint.thin_predictions(self.folder, 1, self.best_epoch, event.epoch, row_bytes)

    def _finish(self, event: Finished) -> None:
        checkpoint.prune(self.folder, {event.epochs, self.best_epoch})
        self.folder.write_manifest()
        early = ", early: no progress on the validation images" if event.stopped_early else ""
        self.log.line(f"Finished after {_epochs(event.epochs)}{early}. Best epoch: {self.best_epoch}.")


def _thinned(progress: Iterator[Progress]) -> Iterator[Progress | None]:
    """Pass on at most four events per second and the last one of each kind of work; None replaces the others."""
    written = 0.0
    with contextlib.closing(progress) as events:  # type: ignore[type-var]
        for event in events:
            if event.done >= event.total or time.monotonic() - written >= _SECONDS_BETWEEN_PROGRESS:
                written = time.monotonic()
                yield event
            else:
                yield None


def _epochs(count: int) -> str:
    return ngettext("{count} epoch", "{count} epochs", count).format(count=count)
