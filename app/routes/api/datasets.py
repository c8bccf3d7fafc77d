"""Data sets: list, import, download, remove."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Form, UploadFile
from sqlmodel import Session, col, select

from app.errors import Conflict, NotFound, Refused
from app.schemas import DatasetList, DatasetOut, DatasetWork
from app.state import Runoff
from app.store.tables import ACTIVE, Run
from app.web.deps import Reading, State
from trainer.config import FieldProblem
from trainer.datasets import catalogue, worker
from trainer.datasets.errors import DatasetError, UnknownDataset
from trainer.i18n import _

router = APIRouter(prefix="/datasets", tags=["data sets"])
ImageSize = Annotated[int, Form(ge=8, le=512, description="pixels a side, where images must be resized")]


def dataset_out(state: Runoff, dataset: catalogue.Dataset) -> DatasetOut:
    """The data set as the API shows it, with what goes on about it."""
    return DatasetOut(**vars(dataset), work=state.imports.find(dataset.name))


def find_dataset(state: Runoff, name: str) -> catalogue.Dataset:
    """One data set. Raises ``NotFound``."""
    try:
        return catalogue.get_dataset(state.settings.home, name)
    except UnknownDataset as error:
        raise NotFound(str(error)) from None


@router.get("")
def list_datasets(state: State) -> DatasetList:
    """All data sets, and the imports that go on or failed."""
    sets = catalogue.list_datasets(state.settings.home)
    names = {dataset.name for dataset in sets}
    return DatasetList(
        datasets=[dataset_out(state, dataset) for dataset in sets],
        imports=[work for work in state.imports.active() if work.name not in names],
    )


@router.post("", status_code=202)
def import_dataset(state: State, file: UploadFile, name: Annotated[str, Form()], size: ImageSize = 64) -> DatasetWork:
    """Import a zip, tar or tar.gz of class folders; follow it with ``GET /datasets/{name}``."""
    begin_import(state, file, name, size)
    return DatasetWork(name=name, what="import")


def begin_import(state: Runoff, file: UploadFile, name: str, size: int) -> None:
    """Keep the upload under HOME and import it in the background. Raises ``Refused`` at the field ``name``, or ``Conflict``."""
    if any(dataset.name == name for dataset in catalogue.list_datasets(state.settings.home)):
        message = _("There is a data set {name} already. Choose another name.").format(name=name)
        raise Conflict(message, [FieldProblem(field="name", message=message)])
    try:
        worker.check_name(name)
    except DatasetError as error:
        raise Refused.fields([FieldProblem(field="name", message=f"{error.message} {error.advice}".strip())]) from None
    folder = state.settings.home / "uploads" / secrets.token_hex(8)
    folder.mkdir(parents=True)
    path = folder / _file_name(file.filename or "")
    try:
        with path.open("wb") as target:
            shutil.copyfileobj(file.file, target, 1 << 20)
        state.imports.start_import(name, path, size)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _file_name(given: str) -> str:
    """The last part of an uploaded file's name, of harmless characters; its end tells the kind of archive."""
    kept = "".join(c if c.isalnum() or c in " ._-()" else "_" for c in Path(given).name[-60:])
    return kept.lstrip(".") or "archive"


@router.get("/{name}")
def get_dataset(state: State, name: str) -> DatasetOut:
    """One data set, or one that is on its way."""
    work = state.imports.find(name)
    try:
        return dataset_out(state, find_dataset(state, name))
    except NotFound:
        if work is None:
            raise
        return DatasetOut(name=name, title=name, kind="imported", status="importing", work=work)


@router.post("/{name}/download", status_code=202)
def download_dataset(state: State, name: str) -> DatasetOut:
    """Download a known data set (if need be) and make its pixel cache."""
    dataset = find_dataset(state, name)
    if dataset.status != "ready":
        state.imports.start_prepare(name)
    return dataset_out(state, dataset)


@router.delete("/{name}", status_code=204)
def delete_dataset(state: State, session: Reading, name: str) -> None:
    """Remove an imported data set, stop one that is on its way, or forget a failed import."""
    if state.imports.find(name) is not None:
        state.imports.cancel(name)
        state.imports.dismiss(name)
        return
    find_dataset(state, name)
    remove_dataset(state, session, name)


def remove_dataset(state: Runoff, session: Session, name: str) -> None:
    """Remove an imported data set. Raises ``Conflict`` for a built-in one, and while a live run uses it."""
    users = session.exec(select(Run.name).where(Run.dataset == name, col(Run.status).in_(ACTIVE))).all()
    if users:
        raise Conflict(
            _("{name} is in use by {run}. Wait for it, or cancel it first.").format(
                name=name, run=users[0] or _("a run")
            )
        )
    try:
        catalogue.remove_dataset(state.settings.home, name)
    except DatasetError as error:
        raise Conflict(f"{error.message} {error.advice}".strip()) from None
