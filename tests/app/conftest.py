"""A server in this process on an empty home, with nothing scheduled, and rows that look like finished runs."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI
from sqlalchemy import Engine

from app.main import create_app
from app.settings import Settings
from app.state import Runoff
from app.store.database import make_engine, migrate, writing
from app.store.tables import Run
from tests.app.page_answers import FakeExecutor
from trainer.config import config_hash, group_hash, parse_config
from trainer.run_folder import RunFolder

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # starlette asks for another client library
    from starlette.testclient import TestClient

if TYPE_CHECKING:
    AddRun = Callable[..., Run]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RUNOFF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("RUNOFF_DATASETS", raising=False)
    return tmp_path / "home"


@pytest.fixture
def site_app(home: Path) -> FastAPI:
    return create_app(Settings(home=home), train=False)


@pytest.fixture
def site(site_app: FastAPI) -> Iterator[TestClient]:
    """A browser's view of the server: asks for pages, does not follow redirects."""
    headers = {"Accept": "text/html", "Sec-Fetch-Site": "same-origin"}
    with TestClient(site_app, base_url="http://localhost", headers=headers, follow_redirects=False) as client:
        yield client


@pytest.fixture
def add_run(site: TestClient, site_app: FastAPI) -> AddRun:
    """Put a run into the index and on disk; keywords are config fields or columns of the table."""
    seconds = itertools.count()

    def add(name: str = "", status: str = "finished", correct: int | None = 9_700, **values: Any) -> Run:
        state = site_app.state.runoff
        columns = {
            key: values.pop(key) for key in list(values) if key in Run.model_fields and key not in ("seed", "epochs")
        }
        config, _warnings = parse_config({"dataset": "mnist", "model": "cnn", **values})
        folder = RunFolder.create(state.settings.runs, config, name=name)
        at = f"2026-03-01T10:{next(seconds) // 60:02d}:{next(seconds) % 60:02d}.000Z"
        done = config.epochs if status == "finished" else 0
        run = Run(
            id=folder.id,
            name=name,
            status=status,
            config=config.model_dump(),
            dataset=config.dataset,
            model=config.model,
            config_hash=config_hash(config),
            group=group_hash(config),
            seed=config.seed,
            epochs=config.epochs,
            created_at=at,
            queued_at=at,
            version=next(seconds) + 1,
        )
        if done and correct is not None:
            accuracy = correct / 10_000
            run = run.model_copy(
                update={
                    "epochs_done": done,
                    "test_correct": correct,
                    "test_total": 10_000,
                    "test_accuracy": accuracy,
                    "best_epoch": done,
                    "best_test_accuracy": accuracy,
                    "train_seconds": 10.0,
                    "images_per_second": 6_000.0,
                    "num_train": 60_000,
                    "num_parameters": 6_422,
                    "started_at": at,
                    "finished_at": at,
                }
            )
        with writing(state.engine) as session:
            row = Run(**{**run.model_dump(), **columns})
            session.add(row)
            session.commit()
        return row

    return add


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """An empty index, beside an empty folder ``runs``."""
    (tmp_path / "runs").mkdir()
    engine = make_engine(tmp_path / "db.sqlite3")
    migrate(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def api(site_app: FastAPI) -> Iterator[TestClient]:
    """A program's view of the server; no trainer stands behind it."""
    with TestClient(site_app, base_url="http://localhost", follow_redirects=False) as client:
        site_app.state.runoff.executor = FakeExecutor()
        yield client


@pytest.fixture
def state(api: TestClient, site_app: FastAPI) -> Runoff:
    """The parts of the server behind ``api``."""
    parts: Runoff = site_app.state.runoff
    return parts
