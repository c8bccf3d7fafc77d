"""The index follows the folders: nothing lost, nothing doubled, whatever dies."""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine
from sqlmodel import select

from app.runs import ingest as module
from app.runs.indexer import Indexer
from app.store.database import last_write, reading, writing
from app.store.queries import next_version
from app.store.tables import Epoch, Run
from tests.app.run_folders import (
    CANCELLED,
    FAILED,
    LABELS,
    PROGRESS,
    answer,
    epoch,
    finish,
    new_run,
    say,
    started,
    steps,
    tear,
)
from trainer.events import Finished
from trainer.run_folder import RunFolder


@pytest.fixture
def index(engine: Engine, tmp_path: Path) -> Indexer:
    return Indexer(engine, tmp_path / "runs")


def rows(index: Indexer) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Everything in the database but the versions."""
    with reading(index.engine) as session:
        runs = [run.model_dump(exclude={"version"}) for run in session.exec(select(Run).order_by(Run.id)).all()]
        epochs = session.exec(select(Epoch).order_by(Epoch.run_id, Epoch.epoch)).all()  # type: ignore[arg-type]
        return runs, [one.model_dump() for one in epochs]


def only(index: Indexer) -> Run:
    with reading(index.engine) as session:
        return session.exec(select(Run)).one()


def test_a_new_folder_is_found_queued(index: Indexer) -> None:
    folder = new_run(index.runs)
    assert index.tick()
    run = only(index)
    assert (run.id, run.status, run.dataset, run.epochs, run.attempt) == (folder.id, "queued", "digits", 3, 0)
    assert not index.tick()


def test_events_move_the_row(index: Indexer) -> None:
    folder = new_run(index.runs)
    index.tick()
    say(folder, [PROGRESS])
    index.tick()
    assert only(index).phase == {"what": "cache", "done": 5, "total": 10, "unit": "images"}
    say(folder, [started(), steps(1), epoch(1, 5), steps(2), epoch(2, 7), epoch(3, 6)])
    index.tick()
    run = only(index)
    assert (run.status, run.attempt, run.step, run.epochs_done, run.phase) == ("running", 1, 30, 3, None)
    assert (run.test_correct, run.best_epoch, run.best_test_accuracy) == (6, 2, 7 / 8)
    assert (run.train_seconds, run.evaluation_seconds, run.images_per_second) == (6.0, 1.5, 50.0)
    say(folder, [Finished(3)])
    index.tick()
    assert (only(index).status, only(index).finished_at is not None) == ("finished", True)


def test_flops_are_summed_or_unknown(index: Indexer) -> None:
    finish(new_run(index.runs))
    index.tick()
    assert only(index).flops == 12e9
    folder = RunFolder(index.runs / only(index).id)
    old = [
        json.dumps({k: v for k, v in json.loads(line).items() if k != "flops" or json.loads(line)["epoch"] > 1})
        for line in folder.events_path.read_text().splitlines()
    ]
    folder.events_path.write_text("\n".join(old) + "\n")
    index.rebuild()
    assert only(index).flops is None
    assert [one["flops"] for one in rows(index)[1]] == [None, 4e9, 4e9]


def test_flops_of_zero_are_unknown(index: Indexer) -> None:
    say(new_run(index.runs), [started(), epoch(1, flops=0.0)])
    index.tick()
    assert (only(index).flops, rows(index)[1][0]["flops"]) == (None, None)


def test_validation_decides_the_best_epoch(index: Indexer) -> None:
    folder = new_run(index.runs)
    say(folder, [started(), *(epoch(n, 5 + n, validation_loss=1.0, validation_accuracy=1 - n / 10) for n in (1, 2, 3))])
    index.tick()
    assert (only(index).best_epoch, only(index).test_correct) == (1, 8)


def test_of_equal_epochs_the_first_is_best(index: Indexer) -> None:
    say(new_run(index.runs), [started(), epoch(1), epoch(2), epoch(3)])
    index.tick()
    assert only(index).best_epoch == 1


def test_a_resumed_attempt_replaces_epochs(index: Indexer) -> None:
    folder = new_run(index.runs)
    say(folder, [started(), epoch(1), epoch(2, 3)])
    index.tick()
    say(folder, [started(first_epoch=2), epoch(2, 8), epoch(3, 7), Finished(3)], attempt=2)
    index.tick()
    runs, epochs = rows(index)
    assert [(e["epoch"], e["attempt"], e["test_correct"]) for e in epochs] == [(1, 1, 6), (2, 2, 8), (3, 2, 7)]
    assert (runs[0]["attempt"], runs[0]["train_seconds"]) == (2, 6.0)


def test_a_torn_last_line_waits(index: Indexer) -> None:
    folder = new_run(index.runs)
    say(folder, [started(), epoch(1)])
    tear(folder)
    index.tick()
    assert (only(index).event_seq, only(index).epochs_done) == (2, 1)
    say(folder, [started(first_epoch=2), epoch(2)], attempt=2)
    index.tick()
    assert (only(index).event_seq, only(index).epochs_done) == (4, 2)


@pytest.mark.parametrize("change", ["shorter", "gap"])
def test_a_log_that_lost_something_damages_its_run(index: Indexer, change: str) -> None:
    folder = new_run(index.runs)
    say(folder, [started(), epoch(1), epoch(2)])
    index.tick()
    kept = folder.events_path.read_bytes().splitlines(keepends=True)
    if change == "shorter":
        folder.events_path.write_bytes(b"".join(kept[:2]))
    else:
        with folder.events_path.open("ab") as file:
            file.write(kept[2].replace(b'"seq":3', b'"seq":7'))
    index.tick()
    assert [e["epoch"] for e in rows(index)[1]] == [1, 2]  # what was read before is kept
    assert only(index).status == "damaged"
    assert "events.jsonl" in (only(index).error or {})["message"]


def test_rows_and_offset_change_together(index: Indexer, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = new_run(index.runs)
    index.tick()
    say(folder, [started(), epoch(1), epoch(2)])
    real = module.summarize

    def fail_once(run: Run, epochs: Any) -> None:
        real(run, epochs)
        if run.epochs_done == 2:
            raise MemoryError

    monkeypatch.setattr(module, "summarize", fail_once)
    with pytest.raises(MemoryError):
        index.tick()
    assert rows(index)[1] == []
    assert only(index).event_offset == 0
    monkeypatch.setattr(module, "summarize", real)
    index.tick()
    assert [e["epoch"] for e in rows(index)[1]] == [1, 2]


def test_a_copied_folder_is_an_imported_run(index: Indexer) -> None:
    folder = finish(new_run(index.runs))
    index.tick()
    shutil.copytree(folder.path, index.runs / "copied0000")
    index.tick()
    runs, epochs = rows(index)
    assert {run["id"] for run in runs} == {folder.id, "copied0000"}
    assert len(epochs) == 6


def test_a_removed_folder_loses_its_row(index: Indexer) -> None:
    folder, other = finish(new_run(index.runs)), new_run(index.runs)
    index.tick()
    shutil.rmtree(folder.path)
    assert index.tick()
    assert [run["id"] for run in rows(index)[0]] == [other.id]
    assert rows(index)[1] == []


def test_a_folder_is_no_run_before_its_run_json(index: Indexer) -> None:
    folder = new_run(index.runs)
    text = (folder.path / "run.json").read_text()
    (folder.path / "run.json").unlink()
    index.tick()
    assert rows(index)[0] == []
    (folder.path / "run.json").write_text(text)
    index.tick()
    assert only(index).id == folder.id


def test_a_broken_folder_stops_nobody(index: Indexer) -> None:
    broken, torn, sound = new_run(index.runs), new_run(index.runs), new_run(index.runs)
    (broken.path / "run.json").write_text(json.dumps({"name": {"a": 1}, "tags": 5, "after_attempt": "x"}))
    torn.events_path.write_text('{"seq":1,"type":"epoch","attempt":1}\n')
    say(sound, [started()])
    index.tick()
    assert sound.id in {run["id"] for run in rows(index)[0]}
    assert index.rebuild() >= 1
    assert sound.id in {run["id"] for run in rows(index)[0]}


def test_deleted_and_hidden_folders_are_left_out(index: Indexer) -> None:
    folder = new_run(index.runs)
    folder.path.rename(index.runs / f".deleted-{folder.id}-0000")
    index.tick()
    assert index.rebuild() == 0


def test_a_rebuilt_index_equals_the_live_one(index: Indexer) -> None:
    finished, failed, cancelled, live = (new_run(index.runs, seed=seed) for seed in range(4))
    index.tick()
    for folder, ends in ((failed, FAILED), (cancelled, CANCELLED)):
        say(folder, [started(), steps(1), epoch(1)])
        index.tick()
        say(folder, [ends])
    say(live, [PROGRESS, started(), epoch(1), steps(2)])
    finish(finished)
    index.tick()
    before = rows(index)
    assert index.rebuild() == 4
    assert rows(index) == before


def test_accuracies_are_counted_from_the_answers(index: Indexer) -> None:
    """The log says 5, 6 and 7 of 8; the answers of the second epoch say 8, which makes it the best."""
    folder = finish(new_run(index.runs))
    answer(folder, 2, correct=8)
    index.tick()
    _runs, epochs = rows(index)
    assert [(one["test_correct"], one["logged_correct"]) for one in epochs] == [(5, None), (8, 6), (7, None)]
    assert [one["test_accuracy"] for one in epochs] == [5 / 8, 1, 7 / 8]
    run = only(index)
    assert (run.test_accuracy, run.best_epoch, run.best_test_accuracy) == (7 / 8, 2, 1)
    assert run.defect == {"epoch": 2, "counted": 8, "num_images": len(LABELS), "reported": 6}
    before = rows(index)
    index.rebuild()
    assert rows(index) == before
    answer(folder, 2, correct=6)
    index.rebuild()
    assert only(index).defect is None


def test_answers_of_a_live_run_are_counted_as_they_come(index: Indexer) -> None:
    folder = new_run(index.runs)
    for number, correct in ((1, 5), (2, 4)):
        answer(folder, number, correct)
        say(folder, [*([started()] if number == 1 else []), epoch(number, correct=5)])
        index.tick()
        assert bool(only(index).defect) == (number == 2)
    assert (only(index).test_correct, only(index).status) == (4, "running")


@pytest.mark.parametrize("broken", ["no answers", "no labels", "torn", "too few labels", "labels of no kind"])
def test_answers_that_cannot_be_read_are_no_defect_of_the_count(index: Indexer, broken: str) -> None:
    folder = finish(new_run(index.runs))
    folder.manifest_path.unlink()  # as versions before it left their runs
    answer(folder, 3, correct=1)
    answers = folder.predictions_path(3)
    match broken:
        case "no answers":
            answers.unlink()
        case "no labels":
            folder.labels_path.unlink()
        case "torn":
            answers.write_bytes(answers.read_bytes()[:20])
        case "too few labels":
            np.save(folder.labels_path, np.array([0], np.uint16))
        case _:
            folder.labels_path.write_text("0")
    index.tick()
    assert (only(index).test_correct, only(index).defect, only(index).status) == (7, None, "finished")


def test_the_server_has_the_last_word_over_older_events(index: Indexer) -> None:
    folder = new_run(index.runs)
    say(folder, [started(), FAILED])
    run = folder.read_run() or {}
    for status, ended in (("queued", None), ("cancelled", "2026-03-01T10:00:00.000Z")):
        folder.write_run({**run, "status": status, "after_attempt": 1, "fruitless_attempts": 2, "ended_at": ended})
        index.rebuild()
        row = only(index)
        assert (row.status, row.finished_at, row.error) == (status, ended, None)
        assert (row.attempt, row.fruitless_attempts) == (1, 2)
    say(folder, [started(), Finished(3)], attempt=2)
    index.rebuild()
    assert only(index).status == "finished"


def test_versions_are_never_given_twice(index: Indexer) -> None:
    folder = new_run(index.runs)
    index.tick()
    highest = only(index).version
    shutil.rmtree(folder.path)
    index.tick()
    with writing(index.engine) as session:
        assert next_version(session) >= highest
    other = new_run(index.runs)
    index.tick()
    assert other.id != folder.id
    assert only(index).version > highest


def test_seconds_left_come_from_this_attempt(index: Indexer, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter(f"2026-03-01T10:00:{second:02d}.000Z" for second in range(60))
    monkeypatch.setattr("trainer.event_log.now", lambda: next(times))
    folder = RunFolder(new_run(index.runs).path)
    say(folder, [started(), steps(1), steps(2)])  # step 1 at second 1, step 11 a second later, of 30
    index.tick()
    assert only(index).seconds_left == pytest.approx(1.9)


@pytest.mark.parametrize("unfit", ["\ud800", 10**30])
def test_a_run_that_does_not_fit_the_index_stops_nobody(index: Indexer, unfit: object) -> None:
    """SQLite refuses a text that is no Unicode, and a number of more than 64 bits, with errors of its own."""
    good, bad = finish(new_run(index.runs)), finish(new_run(index.runs, seed=1))
    name = "name" if isinstance(unfit, str) else "after_attempt"
    record = json.dumps({**(bad.read_run() or {}), name: unfit})
    (bad.path / "run.json").write_text(record)
    index.tick()
    assert good.id in [run["id"] for run in rows(index)[0]]
    assert index.rebuild() >= 1


def test_writers_of_one_process_wait_for_each_other(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.store.database.BUSY_SECONDS", 0.01)
    failed: list[BaseException] = []

    def write() -> None:
        try:
            with writing(engine) as session:
                session.connection()
                time.sleep(0.05)
                session.commit()
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=write) for _number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_a_journal_of_a_killed_server_means_that_any_run_may_have_changed(tmp_path: Path) -> None:
    """SQLite writes to the index when it is opened after a kill, so its time says nothing then."""
    path = tmp_path / "index"
    assert last_write(path) == 0.0
    path.touch()
    assert last_write(path) == path.stat().st_mtime
    (tmp_path / "index-journal").touch()
    assert last_write(path) == 0.0
