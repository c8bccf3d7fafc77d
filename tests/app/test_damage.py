"""A damaged run folder is named and left as it is: nothing is trained again, nothing is lost that another copy holds."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select

from app.runs.indexer import Indexer
from app.store.database import reading
from app.store.tables import Epoch, Run
from tests.app.run_folders import FAILED, epoch, finish, lines, new_run, say, started, tear
from trainer.damage import damage_of
from trainer.event_log import EventLogDamaged, EventWriter, read_log
from trainer.events import Step
from trainer.run_folder import RunFolder


@pytest.fixture
def index(engine: object, tmp_path: Path) -> Indexer:
    return Indexer(engine, tmp_path / "runs")  # type: ignore[arg-type]


def row(index: Indexer) -> Run:
    with reading(index.engine) as session:
        return session.exec(select(Run)).one()


def epochs(index: Indexer) -> list[int]:
    with reading(index.engine) as session:
        return sorted(session.exec(select(Epoch.epoch)).all())


def finished(index: Indexer) -> RunFolder:
    """A finished run with its manifest."""
    return finish(new_run(index.runs))


def flip(path: Path, at: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_the_last_line(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def add_an_unknown_event(path: Path) -> None:
    last = json.loads(path.read_bytes().splitlines()[-1])
    event = {"seq": last["seq"] + 1, "time": last["time"], "attempt": 1, "type": "promoted"}
    with path.open("ab") as file:
        file.write(json.dumps(event, separators=(",", ":")).encode() + b"\n")


WAYS: dict[str, Callable[[Path], object]] = {
    "a bit flipped": lambda path: flip(path, path.stat().st_size // 3),
    "cut at half": cut,
    "last line torn": cut_the_last_line,
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "an unknown last event": add_an_unknown_event,
    "a line gone": lambda path: path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2])),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("reindexed", [False, True])
def test_a_finished_run_with_a_damaged_log_is_never_queued(index: Indexer, way: str, reindexed: bool) -> None:
    folder = finished(index)
    index.tick()
    assert (row(index).status, epochs(index)) == ("finished", [1, 2, 3])
    WAYS[way](folder.events_path)
    if reindexed:
        index.rebuild()
    else:
        index._look_at_all_at = 0
        index.tick()
    if way == "a bit flipped" and not reindexed:  # the log is as long as before, so nobody has read it again
        assert row(index).status == "finished"
    else:
        assert row(index).status == "damaged"
        assert (row(index).error or {})["message"]
    if not reindexed:
        assert epochs(index) == [1, 2, 3]
    if read_log(folder.events_path).damage:
        before = folder.events_path.read_bytes()
        with pytest.raises(EventLogDamaged):
            EventWriter(folder.events_path, 2)
        assert folder.events_path.read_bytes() == before


@pytest.mark.parametrize("name", ["run.json", "config.json", "environment.json", "manifest.json", "events.jsonl"])
def test_every_flipped_bit_is_named(index: Indexer, name: str) -> None:
    folder = finished(index)
    path = folder.path / name
    whole = path.read_bytes()
    chance = random.Random(name)
    missed = []
    for _draw in range(60):
        at, bit = chance.randrange(len(whole)), chance.randrange(8)
        flip(path, at, bit)
        if not damage_of(folder, full=True) and json_of(path) != json_of_bytes(whole):
            missed.append((at, bit, whole[max(at - 20, 0) : at + 20]))
        path.write_bytes(whole)
    assert missed == []
    assert damage_of(folder, full=True) == []


def json_of(path: Path) -> object:
    return json_of_bytes(path.read_bytes())


def json_of_bytes(data: bytes) -> object:
    try:
        return [json.loads(line) for line in data.splitlines()] if data.startswith(b'{"seq"') else json.loads(data)
    except ValueError:
        return None


def test_one_bad_folder_hurts_no_other(index: Indexer) -> None:
    bad, good = finished(index), finished(index)
    record = bad.read_run()
    assert record is not None
    bad.write_run({**record, "tags": 7})
    index.tick()
    with reading(index.engine) as session:
        statuses = {run.id: (run.status, run.tags) for run in session.exec(select(Run)).all()}
    assert statuses == {bad.id: ("damaged", []), good.id: ("finished", [])}


@pytest.mark.parametrize("change", [{"schema": 99}, {"new_field": 1}, {"epochs": "many"}])
def test_a_config_that_does_not_fit_is_shown_and_not_started(index: Indexer, change: dict[str, object]) -> None:
    folder = new_run(index.runs)
    values = json.loads(folder.config_path.read_text())
    del values["crc"]
    folder.config_path.write_text(json.dumps(values | change))
    index.tick()
    assert (row(index).status, row(index).dataset) == ("damaged", "digits")


def test_a_torn_last_line_of_an_unfinished_run_is_kept_beside_the_log(index: Indexer) -> None:
    folder = new_run(index.runs)
    say(folder, [started(), epoch(1)])
    tear(folder)
    torn = folder.events_path.read_bytes()
    say(folder, [FAILED], attempt=2)
    assert [line["seq"] for line in lines(folder)] == [1, 2, 3]
    assert torn.endswith((folder.path / "events.torn-2").read_bytes())
    assert damage_of(folder) == []


def test_a_run_that_lost_lines_of_steps_in_a_power_cut_is_continued(index: Indexer) -> None:
    folder = new_run(index.runs)
    say(folder, [started(), epoch(1), Step(epoch=2, step=11, losses=[])])
    synced = folder.events_path.read_bytes()
    say(folder, [Step(epoch=2, step=12, losses=[])])
    index.tick()
    folder.events_path.write_bytes(synced)
    index.tick()
    assert (row(index).status, row(index).event_offset, epochs(index)) == ("running", len(synced), [1])
    folder.events_path.write_bytes(b"".join(synced.splitlines(keepends=True)[:1]))
    index.tick()
    assert (row(index).status, epochs(index)) == ("damaged", [1])


def test_a_log_begun_without_checksums_stays_so(index: Indexer) -> None:
    folder = new_run(index.runs)
    say(folder, [started(), epoch(1)])
    plain = [{key: value for key, value in line.items() if key != "crc"} for line in lines(folder)]
    folder.events_path.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in plain))
    say(folder, [FAILED], attempt=2)
    assert all("crc" not in line for line in lines(folder))
    index.tick()
    assert row(index).status == "failed"


def test_a_cut_record_takes_the_labels_from_the_index(index: Indexer) -> None:
    folder = finished(index)
    index.tick()
    cut(folder.path / "run.json")
    with index.engine.connect():
        index._look_at_all_at = 0
    index.rebuild()
    assert row(index).status == "damaged"


def test_a_damaged_run_is_named_on_its_pages_and_offers_no_action(site: Any, site_app: Any) -> None:
    state = site_app.state.runoff
    folder = finish(new_run(state.settings.runs))
    cut(folder.events_path)
    state.indexer.tick()
    page = site.get(f"/runs/{folder.id}").text
    assert "Damaged" in page
    assert "There are files of epoch 3" in page
    assert f'/runs/{folder.id}/cancel"' not in page
    assert f'/runs/{folder.id}/resume"' not in page
    assert "There are files of epoch 3" in site.get("/runs").text
    listed = site.get("/runs", params={"status": "damaged"}).text
    assert "Damaged" in listed
    body = site.get(f"/api/v1/runs/{folder.id}").json()
    assert (body["status"], body["error"]["error"]) == ("damaged", "RunDamaged")
