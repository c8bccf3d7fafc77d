"""Data sets: list, import, download, remove."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, UploadFile

from app.datasets import find_dataset, remove_dataset
from app.errors import NotFound
from app.schemas import DatasetList, DatasetOut, DatasetWork
from app.state import Runoff
from app.web.deps import Reading, State
from trainer.datasets import catalogue

router = APIRouter(prefix="/datasets", tags=["data sets"])
ImageSize = Annotated[int, Form(ge=8, le=512, description="pixels per side, if images must be resized")]


def _dataset_out(state: Runoff, dataset: catalogue.Dataset) -> DatasetOut:
    """The data set as the API shows it, with the work on it that is in progress."""
    return DatasetOut(**vars(dataset), work=state.imports.find(dataset.name))


@router.get("")
def list_datasets(state: State) -> DatasetList:
    """All data sets, including imports in progress and failed ones."""
    sets = catalogue.list_datasets(state.settings.home)
    names = {dataset.name for dataset in sets}
    return DatasetList(
        datasets=[_dataset_out(state, dataset) for dataset in sets],
        imports=[work for work in state.imports.active() if work.name not in names],
    )


@router.post("", status_code=202, responses={507: {"description": "The disk is full; nothing was kept."}})
def import_dataset(state: State, file: UploadFile, name: Annotated[str, Form()], size: ImageSize = 64) -> DatasetWork:
    """Import a zip, tar or tar.gz of class folders; follow it with ``GET /datasets/{name}``.

    If the server is restarted during the import, it imports the uploaded file again from the beginning.
    """
    state.imports.begin_import(file.file, file.filename or "", name, size)
    return DatasetWork(name=name, what="import")


@router.get("/{name}")
def get_dataset(state: State, name: str) -> DatasetOut:
    """One data set, which may still be in preparation."""
    work = state.imports.find(name)
    try:
        return _dataset_out(state, find_dataset(state.settings.home, name))
    except NotFound:
        if work is None:
            raise
        return DatasetOut(name=name, title=name, kind="imported", status="importing", work=work)


@router.post("/{name}/download", status_code=202)
def download_dataset(state: State, name: str) -> DatasetOut:
    """Download a built-in data set if necessary, and build its pixel cache."""
    dataset = find_dataset(state.settings.home, name)
    if dataset.status != "ready":
        state.imports.start_prepare(name)
    return _dataset_out(state, dataset)


@router.delete("/{name}", status_code=204)
def delete_dataset(state: State, session: Reading, name: str) -> None:
    """Remove an imported data set, stop its preparation, or dismiss a failed import."""
    if state.imports.find(name) is not None:
        state.imports.cancel(name)
        state.imports.dismiss(name)
        return
    find_dataset(state.settings.home, name)
    remove_dataset(state.settings.home, session, name)
