"""The data sets page: all data sets, downloads and imports in progress, and the form to import an archive."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import APIRouter, File, Form, Request, Response, UploadFile
from fastapi.responses import RedirectResponse
from sqlalchemy import func
from sqlmodel import Session, select

from app.datasets import find_dataset, remove_dataset
from app.draw.small import class_bars
from app.draw.svg import Drawing
from app.errors import Conflict, Refused
from app.schemas import DatasetWork
from app.state import Runoff
from app.store import queries
from app.store.tables import Run
from app.web import templating
from app.web.deps import Reading, State
from app.words import filesize, number, percent
from trainer.config import FieldProblem
from trainer.datasets import catalogue
from trainer.datasets.catalogue import Dataset
from trainer.i18n import N_, _, ngettext

router = APIRouter()
DEFAULT_SIZE = 64
SHEET_CELL, SHEET_CLASSES, SHEET_ROWS = 32, 10, 4  # as trainer.datasets.cache draws samples.png
MOST_BARS, MOST_NAMED_BARS = 30, 12
_MOST_LISTED = 8  # classes, by name
KINDS = {"torchvision": N_("torchvision"), "built in": N_("built in"), "imported": N_("imported")}


@dataclass(frozen=True)
class Work:
    """The work in progress for a data set, in words."""

    what: str
    words: str
    share: float | None  # 0..1; None if unknown
    message: str
    advice: str
    is_stopping: bool
    waiting: str = ""  # what it waits for

    @property
    def has_failed(self) -> bool:
        return bool(self.message)

    @property
    def title(self) -> str:
        """One word for the badge."""
        if self.waiting:
            return _("Waiting")
        return {"download": _("Downloading"), "cache": _("Preparing")}.get(self.what, _("Importing"))

    @property
    def share_words(self) -> str:
        return "" if self.share is None else _("{percent} %").format(percent=percent(self.share, 0))

    @property
    def samples_words(self) -> str:
        """A sentence about when samples appear."""
        if self.what == "download":
            return _("Samples appear when the download is complete and its checksum has been verified.")
        return _("Samples appear when all images have been read.")

    @property
    def stop_words(self) -> str:
        """A sentence about the effect of stopping."""
        if self.what == "download":
            return _("A stopped download starts from the beginning.")
        return _("Stopping leaves no files behind.")


@dataclass(frozen=True)
class Card:
    """The card of a data set."""

    dataset: Dataset
    work: Work | None
    num_runs: int

    @property
    def state(self) -> str:
        """``ready``, ``damaged``, ``available``, ``absent``, ``working`` or ``failed``."""
        if self.work is not None:
            return "failed" if self.work.has_failed else "working"
        return self.dataset.status

    @property
    def badge(self) -> tuple[str, str, str]:
        """CSS class, icon and text of the state."""
        if self.work and self.state == "working":
            return ("warn", "clock", self.work.title) if self.work.waiting else ("running", "spin", self.work.title)
        return {
            "ready": ("ok", "check", _("Ready")),
            "failed": ("bad", "alert", _("Failed")),
            "damaged": ("bad", "alert", _("Damaged")),
            "available": ("", "clock", _("To prepare")),
        }.get(self.state, ("", "download", _("Not downloaded")))

    @property
    def no_samples_words(self) -> str:
        """Why there are no samples; empty if there are some, or if the work has failed."""
        if self.work and self.state == "working":
            return self.work.samples_words
        return {
            "available": _("The files are here. The first run prepares the images, or you can do it now."),
            "absent": _("Samples appear after the download."),
        }.get(self.state, "")

    @property
    def is_imported(self) -> bool:
        return self.dataset.kind == "imported"

    @property
    def class_words(self) -> str:
        """The classes as text, in case the bars have no room for their names."""
        names = self.dataset.class_names
        if len(names) <= MOST_NAMED_BARS:
            return ""
        listed = ", ".join(names[:_MOST_LISTED]) + (" …" if len(names) > _MOST_LISTED else "")
        return ngettext("{n} class: {names}", "{n} classes: {names}", len(names)).format(
            n=number(len(names)), names=listed
        )

    @property
    def unlisted_words(self) -> str:
        """How many more unreadable files there are than are listed; empty if none."""
        count = self.dataset.num_unreadable - len(self.dataset.unreadable)
        return _("and {n} more").format(n=number(count)) if count > 0 else ""

    @property
    def runs_words(self) -> str:
        return ngettext("{n} run", "{n} runs", self.num_runs).format(n=number(self.num_runs))

    @property
    def delete_question(self) -> dict[str, str]:
        """The texts of the dialog that confirms the removal."""
        text = _(
            "{images}, imported from {source}. Runs that were trained on it keep their numbers, but their images can no "
            "longer be shown, and the name can't be used for other images."
        )
        if self.state == "damaged":
            text = _(
                "Its files are damaged. Runs that were trained on it keep their numbers, and the same images can be "
                "imported again."
            )
        return {
            "title": _("Delete {name}?").format(name=self.dataset.title),
            "name": self.dataset.name,
            "text": text.format(images=self.images, source=self.source or self.dataset.title),
        }

    @property
    def images(self) -> str:
        d = self.dataset
        if d.num_train is None or d.num_test is None:
            return ""
        return _("{train} train, {test} test").format(train=f"{d.num_train:,}", test=f"{d.num_test:,}")

    @property
    def size(self) -> str:
        if self.dataset.image_shape is None:
            return ""
        channels, height, width = self.dataset.image_shape
        words = _("{height} × {width} grey") if channels == 1 else _("{height} × {width} RGB")
        return words.format(height=height, width=width)

    @property
    def kind(self) -> str:
        return _(KINDS[self.dataset.kind])

    @property
    def source(self) -> str:
        """The name of the file that the data set was imported from."""
        return re.sub(r"^[0-9a-f]{16}-", "", self.dataset.source)

    @property
    def sheet_size(self) -> tuple[int, int]:
        """Width and height of the image with all samples, in pixels."""
        assert self.dataset.image_shape is not None
        _channels, height, width = self.dataset.image_shape
        columns = min(SHEET_CLASSES, len(self.dataset.class_names))
        return columns * max(SHEET_CELL, width), SHEET_ROWS * max(SHEET_CELL, height)

    @property
    def bars(self) -> Drawing | str:
        """A bar chart of the training images per class; of many classes the first ``MOST_BARS``."""
        names, counts = self.dataset.class_names[:MOST_BARS], self.dataset.train_counts[:MOST_BARS]
        return class_bars(names, counts, self.spread, are_named=len(self.dataset.class_names) <= MOST_NAMED_BARS)

    @property
    def spread(self) -> str:
        """The counts of the bar chart as text, for screen readers."""
        pairs = zip(self.dataset.class_names, self.dataset.train_counts, strict=True)
        listed = ", ".join(f"{name} {count:,}" for name, count in list(pairs)[:MOST_BARS])
        return _("training images per class: {list}").format(list=listed)


@dataclass(frozen=True)
class ImportForm:
    """The values of the import form, and its errors."""

    name: str = ""
    size: str = str(DEFAULT_SIZE)
    errors: dict[str, str] = field(default_factory=dict)

    def error(self, name: str) -> str:
        """The error of a field; empty if it is valid."""
        return self.errors.get(name, "")


@dataclass(frozen=True)
class DatasetsPage:
    """Variables of datasets.html."""

    cards: list[Card]
    form: ImportForm

    @property
    def summary(self) -> str:
        """The number of data sets by state, such as ``3 ready, 1 in progress, 1 not downloaded``."""
        states = [card.state for card in self.cards]
        counted = (
            (states.count("ready"), _("{n} ready")),
            (states.count("working"), _("{n} in progress")),
            (states.count("available"), _("{n} to prepare")),
            (states.count("absent"), _("{n} not downloaded")),
            (states.count("failed"), _("{n} failed")),
            (states.count("damaged"), _("{n} damaged")),
        )
        return ", ".join(words.format(n=n) for n, words in counted if n)


def _work_of(work: DatasetWork) -> Work:
    error = work.error or {}
    share = work.done / work.total if work.total else None
    total = filesize(work.total) if work.unit == "bytes" else f"{work.total:,}"
    words = {
        "download": _("Downloading {total}") if work.total else _("Downloading"),
        "cache": _("Preparing {total} images") if work.total else _("Preparing the images"),
    }.get(work.what, _("Reading {total} images") if work.total else _("Reading the archive"))
    return Work(
        what=work.what,
        words=words.format(total=total),
        share=share,
        message=error.get("message", ""),
        advice=error.get("advice", ""),
        is_stopping=work.cancelled,
        waiting=work.waiting,
    )


def _cards(session: Session, datasets: Sequence[Dataset], active: Sequence[DatasetWork]) -> list[Card]:
    works = {work.name: _work_of(work) for work in active}
    runs = dict(session.exec(select(Run.dataset, func.count()).group_by(Run.dataset)).all())
    cards = [Card(d, works.pop(d.name, None), runs.get(d.name, 0)) for d in datasets]
    coming = [Dataset(name, name, "imported", "importing", None, None, None, []) for name in works]
    return cards + [Card(dataset, works[dataset.name], 0) for dataset in coming]


def _page(request: Request, state: Runoff, session: Session, form: ImportForm, status_code: int = 200) -> Response:
    datasets = catalogue.list_datasets(state.settings.home)
    active = state.imports.active()
    known = [(d.name, d.status, d.train_fingerprint, d.created_at, d.problem) for d in datasets]
    version = json.dumps([queries.data_version(session), known, [work.model_dump() for work in active]])
    if status_code == 200 and (same := templating.unchanged(request, version)):
        return same
    page = DatasetsPage(_cards(session, datasets, active), form)
    live = True if any(work.error is None for work in active) else None
    return templating.render(request, "datasets.html", page, version=version, live=live, status_code=status_code)


@router.get("/datasets")
def datasets_page(request: Request, state: State, session: Reading) -> Response:
    """All data sets as cards."""
    return _page(request, state, session, ImportForm())


@router.post("/datasets")
def import_archive(
    request: Request,
    state: State,
    session: Reading,
    file: Annotated[UploadFile | None, File()] = None,
    name: Annotated[str, Form()] = "",
    size: Annotated[str, Form()] = str(DEFAULT_SIZE),
) -> Response:
    """Start to import an uploaded archive; its card then shows the progress."""
    errors: dict[str, str] = {}
    if file is None or not file.filename:
        errors["file"] = _("No file was chosen. Choose a zip, tar or tar.gz of class folders.")
    if not (size.isascii() and size.isdigit()) or not 8 <= int(size) <= 512:
        errors["size"] = _("Must be a whole number from 8 to 512. You typed {typed}.").format(typed=size[:20])
    name = name.strip() or suggested_name(file.filename or "" if file else "")
    if not errors and file is not None:
        try:
            state.imports.begin_import(file.file, file.filename or "", name, int(size))
            return RedirectResponse("/datasets", 303)
        except (Refused, Conflict) as problem:
            errors = {error.field: error.message for error in problem.errors} or {"name": problem.detail}
    return _page(request, state, session, ImportForm(name, size, errors), 422)


def suggested_name(filename: str) -> str:
    """A valid name made from a file name: ``My Cats.tar.gz`` -> ``my-cats``; empty if nothing is left."""
    stem = re.sub(r"\.(zip|tar|tgz|tar\.gz)$", "", filename.rsplit("/", 1)[-1], flags=re.IGNORECASE)
    return re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")[:64].strip("-")


# Actions on one data set ---------------------------------------------------------------------------------------------


def _answer(request: Request, icon: str, message: str) -> Response:
    if "HX-Request" not in request.headers:
        return RedirectResponse("/datasets", 303)
    return templating.toast(icon, message)


@router.post("/datasets/delete")
def delete(request: Request, state: State, session: Reading, name: Annotated[str, Form()]) -> Response:
    """Remove an imported data set. Fails while a queued or running run uses it."""
    dataset = find_dataset(state.settings.home, name)
    if state.imports.is_active(name):
        raise Conflict(_("{name} is being prepared. Stop that first.").format(name=name))
    remove_dataset(state.settings.home, session, name)
    return _answer(request, "trash", _("{name} deleted").format(name=dataset.title))


@router.post("/datasets/{name}/prepare")
def prepare(request: Request, state: State, name: str) -> Response:
    """Download a built-in data set if necessary, and build its pixel cache."""
    dataset = find_dataset(state.settings.home, name)
    if dataset.status == "ready":
        return _answer(request, "check", _("{name} is already prepared").format(name=dataset.title))
    state.imports.dismiss(name)
    state.imports.start_prepare(name)
    words = _("Downloading {name}") if dataset.status == "absent" else _("Preparing {name}")
    return _answer(request, "download", words.format(name=dataset.title))


@router.post("/datasets/{name}/stop")
def stop(request: Request, state: State, name: str) -> Response:
    """Stop a download or an import, and remove its files."""
    if not state.imports.is_active(name):
        raise Refused.fields(
            [FieldProblem(field="name", message=_("Nothing is in progress for {name}.").format(name=name[:64]))]
        )
    state.imports.cancel(name)
    return _answer(request, "stop", _("{name} is being stopped").format(name=name))


@router.post("/datasets/{name}/dismiss")
def dismiss(request: Request, state: State, name: str) -> Response:
    """Dismiss the message about a failed download or import."""
    state.imports.dismiss(name)
    return _answer(request, "x", _("The message about {name} was dismissed").format(name=name[:64]))
