"""One bit of one file is flipped. ``runoff check --full`` names it, nothing is trained again, and nothing else is lost.

The home holds a finished run, a run whose process was killed in the middle of its training, a data set and the index.
After each flip the scheduler looks at the home with the index as it was and with a new one, and the interrupted run
goes on. Then every file gets its old bytes back.
"""

from __future__ import annotations

import json
import random
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select
from typer.testing import CliRunner

from app.cli.commands import app as commands
from app.runs.indexer import Indexer
from app.runs.scheduler import Scheduler
from app.settings import Settings
from app.store.database import make_engine, migrate, reading
from app.store.tables import Epoch, Run
from tests.faults.attempts import Attempts
from tests.faults.conftest import Count
from tests.faults.results import damage_in, ending, reported_epochs, results
from trainer.config import parse_config
from trainer.run_folder import RunFolder

pytestmark = pytest.mark.faults

EPOCHS, EPOCHS_BEFORE_THE_KILL = 10, 3
NOT_COVERED = ("log.txt", "exit-1.json", "heartbeat")  # what a run prints, how it ended, and that it lives
NOT_COVERED_BEFORE_THE_END = ("pictures/",)  # the manifest, which is written at the end, has their hashes
LIVE_COLUMNS = ("version", "device", "rate_step", "rate_at", "seconds_left", "phase", "updated_at", "queued_at")
NOT_COVERED_OF_DATA = ("samples.png",)  # the picture on the page, made from the images


class Recorder:
    """An executor that starts nothing and remembers what it should have started."""

    def __init__(self) -> None:
        self.started: list[str] = []

    def ensure_host(self) -> None: ...

    def ready(self) -> bool:
        return True

    def devices(self) -> list[dict[str, Any]]:
        return [{"name": "cpu"}]

    known_devices = devices

    def start(self, folder: RunFolder, attempt: int, num_threads: int, device: str | None = None) -> None:
        self.started.append(folder.id)


@dataclass
class Place:
    """A bit of a file, by its path within the home."""

    name: str
    at: int
    bit: int

    def __str__(self) -> str:
        return f"bit {self.bit} of byte {self.at:,} of {self.name}"


@dataclass
class Looked:
    """What the scheduler made of a home: what it started, and each run with its status and epochs."""

    started: list[str]
    statuses: dict[str, str]
    epochs: dict[str, list[int]]


@dataclass
class Home:
    """A home as it was before any flip."""

    settings: Settings
    attempts: Attempts
    finished: RunFolder
    interrupted: RunFolder
    expected: dict[str, Any]  # the results of a run like the interrupted one that was left alone
    files: dict[str, bytes] = field(default_factory=dict)

    def present(self) -> dict[str, bytes]:
        """The files of runs and data sets, and the index; not the notes of earlier checks."""
        home = self.settings.home
        paths = [*home.glob("runs/**/*"), *home.glob("datasets/[!.]*/*"), self.settings.database]
        return {path.relative_to(home).as_posix(): path.read_bytes() for path in paths if path.is_file()}

    def restore(self) -> None:
        """Give every file its old bytes, and remove what was added."""
        for name, data in self.present().items():
            if name not in self.files:
                (self.settings.home / name).unlink()
            elif data != self.files[name]:
                (self.settings.home / name).write_bytes(self.files[name])
        for name in self.files.keys() - self.present():
            (self.settings.home / name).write_bytes(self.files[name])

    def flip(self, place: Place) -> None:
        data = bytearray(self.files[place.name])
        data[place.at] ^= 1 << place.bit
        (self.settings.home / place.name).write_bytes(data)

    def below(self, folder: Path) -> list[str]:
        """The files in a folder that have at least a byte."""
        prefix = folder.relative_to(self.settings.home).as_posix() + "/"
        return sorted(name for name, data in self.files.items() if name.startswith(prefix) and data)

    def check(self) -> list[str]:
        """The lines of ``runoff check --full`` that name damage."""
        result = CliRunner().invoke(commands, ["check", "--full"])
        if not isinstance(result.exception, SystemExit | None):
            return [f"runoff check fails: {result.exception!r}"]
        *lines, last = result.output.splitlines()
        assert result.exit_code == bool(lines), result.output
        assert last.endswith("damaged.")
        return lines

    def look(self, *, reindex: bool) -> Looked:
        """What a server would do with the home: index, watch and start runs, twice."""
        engine, executor = make_engine(self.settings.database), Recorder()
        indexer = Indexer(engine, self.settings.runs)
        if reindex:
            indexer.rebuild()
        scheduler = Scheduler(engine, self.settings.runs, indexer, executor, slots=2)  # type: ignore[arg-type]
        scheduler.tick()
        scheduler.tick()
        with reading(engine) as session:
            statuses = {run.id: run.status for run in session.exec(select(Run)).all()}
            rows = session.exec(select(Epoch)).all()
        epochs = {run: sorted(row.epoch for row in rows if row.run_id == run) for run in statuses}
        return Looked(executor.started, statuses, epochs)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    settings = Settings(home=tmp_path_factory.mktemp("flips"))

    def new_run(epochs: int, name: str) -> RunFolder:
        config, _warnings = parse_config({"dataset": "digits", "model": "fc", "batch_size": 16, "epochs": epochs})
        return RunFolder.create(settings.runs, config, name=name, tags=["some", "tags"], notes="a few words")

    with Attempts(settings.home) as process:
        undisturbed, finished, interrupted = new_run(EPOCHS, "u"), new_run(3, "finished"), new_run(EPOCHS, "stopped")
        for folder in (undisturbed, finished):
            assert process.run(folder, 1) == 0
            folder.write_exit(1, 0)
        assert process.run(interrupted, 1, kill_after_epochs=EPOCHS_BEFORE_THE_KILL) == -9
        interrupted.write_exit(1, 9)
        expected = results(undisturbed)
        for path in sorted(undisturbed.path.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        undisturbed.path.rmdir()
        engine = make_engine(settings.database)
        migrate(engine)
        Indexer(engine, settings.runs).rebuild()
        home = Home(settings, process, finished, interrupted, expected)
        home.files = home.present()
        yield home


@pytest.fixture
def intact(sealed: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """The home, with nothing wrong."""
    monkeypatch.setenv("RUNOFF_HOME", str(sealed.settings.home))
    monkeypatch.delenv("RUNOFF_DATASETS", raising=False)
    assert sealed.check() == []
    yield sealed
    sealed.restore()


def places(home: Home, names: list[str], number: int, chance: random.Random) -> Iterator[Place]:
    """Random bits of all files in turn, beginning with any of them."""
    names = chance.sample(names, len(names))
    for n in range(number):
        name = names[n % len(names)]
        yield Place(name, chance.randrange(len(home.files[name])), chance.randrange(8))


def content(data: bytes) -> object:
    """What a JSON file says; of another file its bytes."""
    try:
        return json.loads(data)
    except ValueError:
        return data


def verdict(home: Home, place: Place, folder: str, not_covered: tuple[str, ...] = ()) -> str:
    """Whether ``runoff check --full`` names the flipped file, or why it need not; otherwise a sentence."""
    lines = home.check()
    if [line.split(":")[0] for line in lines] == [folder]:
        return "named"
    if lines:
        return f"{place}: these are named: {lines}"
    inside = place.name.split("/", 2)[2]
    if inside.startswith(not_covered):
        return "not covered (" + inside.split("/")[0] + ")"
    now = (home.settings.home / place.name).read_bytes()
    same = place.name.endswith(".json") and content(now) == content(home.files[place.name])
    return "same content" if same else f"{place} is not named"


def report(count: Count, what: str, verdicts: list[str], wrong: list[str]) -> None:
    """Count the verdicts. Those that are sentences are wrong."""
    wrong += [verdict for verdict in verdicts if "byte" in verdict]
    kinds = Counter(verdict for verdict in verdicts if "byte" not in verdict)
    text = ", ".join(f"{kind} {times}" for kind, times in kinds.most_common())
    count(f"a bit flipped in {what}", len(verdicts), f"{len(wrong)} wrong; {text}")
    assert not wrong, "\n".join(wrong)


def test_a_flip_in_a_finished_run_trains_nothing(intact: Home, full: bool, chance: random.Random, count: Count) -> None:
    run = intact.finished.id
    names = intact.below(intact.finished.path)
    verdicts, wrong = [], []
    for place in places(intact, names, 170 if full else 8, chance):
        intact.flip(place)
        flipped = intact.present()
        verdicts.append(verdict(intact, place, run, NOT_COVERED))
        for reindex in (False, True):
            seen = intact.look(reindex=reindex)
            if run in seen.started or seen.statuses[run] not in ("finished", "damaged"):
                wrong.append(f"{place}: {seen}")
            if seen.statuses[run] == "finished" and seen.epochs[run] != [1, 2, 3]:
                wrong.append(f"{place}: epochs {seen.epochs[run]}")
            if not reindex and seen.epochs[run] != [1, 2, 3]:
                wrong.append(f"{place}: the index has only epochs {seen.epochs[run]}")
        present = intact.present()
        wrong += [f"{place}: {name} was changed" for name in names if present.get(name) != flipped[name]]
        (intact.settings.home / place.name).write_bytes(intact.files[place.name])
        seen = intact.look(reindex=True)
        if (seen.statuses[run], seen.epochs[run]) != ("finished", [1, 2, 3]):
            wrong.append(f"{place}: after the file was restored, there is {seen}")
        intact.restore()
    report(count, "a finished run", verdicts, wrong)


def test_a_flip_in_an_interrupted_run_is_named_and_costs_no_result(
    intact: Home, full: bool, chance: random.Random, count: Count
) -> None:
    folder = intact.interrupted
    verdicts, wrong, refused = [], [], 0
    for place in places(intact, intact.below(folder.path), 150 if full else 5, chance):
        intact.flip(place)
        flipped = intact.present()
        now = verdict(intact, place, folder.id, (*NOT_COVERED, *NOT_COVERED_BEFORE_THE_END))
        verdicts.append(now)
        seen = intact.look(reindex=False)
        if seen.statuses[folder.id] == "damaged":
            refused += 1
            present = intact.present()
            names = intact.below(folder.path)
            wrong += [f"{place}: {name} was changed" for name in names if present[name] != flipped[name]]
            if folder.id in seen.started or intact.attempts.run(folder, 2) == 0:
                wrong.append(f"{place}: a damaged run was trained")
        else:
            wrong += [f"{place}: {text}" for text in _goes_on(intact, folder, place, was_named=now == "named")]
        intact.restore()
    report(count, f"an interrupted run ({refused} were not started any more)", verdicts, wrong)


def _goes_on(home: Home, folder: RunFolder, place: Place, *, was_named: bool) -> Iterator[str]:
    """The next attempt, and how its results differ. What was flipped stays so if nothing writes it again."""
    status = home.attempts.run(folder, 2)
    end = ending(folder)
    if status != 0 or end is None or end["type"] != "finished":
        yield f"the next attempt ended with status {status}: {end}"
    inside = place.name.split("/", 2)[2]
    found = results(folder)
    wrong = {name for name in found.keys() | home.expected if found.get(name) != home.expected.get(name)}
    if wrong - {inside}:
        yield f"{sorted(wrong)} differ"
    problems = damage_in(folder)
    if wrong and not problems:
        yield "the flipped file is not named any more"
    if not wrong and was_named and any(inside not in problem for problem in problems):
        yield f"at the end: {problems}"
    epochs = reported_epochs(folder)
    if inside.startswith("checkpoints/"):  # an epoch whose checkpoint is damaged is trained and reported again
        epochs = sorted(set(epochs))
    if epochs != [*range(1, EPOCHS + 1)]:
        yield f"the epochs are {epochs}"


def test_a_flip_in_a_data_set_is_named_and_not_trained_on(
    intact: Home, full: bool, chance: random.Random, count: Count
) -> None:
    names = intact.below(intact.settings.home / "datasets")
    verdicts, wrong = [], []
    for place in places(intact, names, 80 if full else 4, chance):
        intact.flip(place)
        verdicts.append(verdict(intact, place, "digits", NOT_COVERED_OF_DATA))
        status = intact.attempts.run(intact.interrupted, 2)
        end = ending(intact.interrupted) or {}
        if verdicts[-1] == "named" and (status, end.get("error")) != (0, "DatasetDamaged"):
            wrong.append(f"{place}: a run was trained on it: {status}, {end}")
        intact.restore()
    report(count, "a data set", verdicts, wrong)


def test_a_flip_in_the_index_is_named_or_changes_no_row(
    intact: Home, full: bool, chance: random.Random, count: Count
) -> None:
    database = intact.settings.database
    rows, covered = _rows(database), _covered(_rows(database), intact)
    verdicts, wrong = [], []
    for place in places(intact, [database.name], 100 if full else 15, chance):
        intact.flip(place)
        named, now = intact.check(), _rows(database)
        if named and named[0].startswith("runoff check fails"):
            verdicts.append(f"{place}: {named}")
        elif named:
            verdicts.append("named")
            result = CliRunner().invoke(commands, ["reindex"])
            if result.exit_code or _covered(_rows(database), intact) != covered:
                wrong.append(f"{place}: {named}, but runoff reindex: {result.output.strip()} {result.exception!r}")
        elif now == rows:
            verdicts.append("changes no row (free space, unused fields of headers)")
        elif _covered(now, intact) == covered:
            verdicts.append("not covered (what a live run writes again)")
        else:
            changed = [row for table, found in now.items() for row in found if row not in rows.get(table, [])]
            verdicts.append(f"{place} is not named, and these rows have changed: {changed}")
        intact.restore()
    report(count, "the index", verdicts, wrong)


def _rows(database: Path) -> dict[str, list[dict[str, Any]]]:
    """All rows of all tables; none if SQLite can't read them. The case of names does not matter to SQLite."""
    found: dict[str, list[dict[str, Any]]] = {}
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
            connection.row_factory = sqlite3.Row
            connection.text_factory = lambda data: data.decode(errors="surrogateescape")
            for table in ("alembic_version", "epoch", "run"):
                rows = [dict(row) for row in connection.execute(f"SELECT * FROM {table}")]
                found[table] = sorted(({key.lower(): row[key] for key in row} for row in rows), key=str)
    except (sqlite3.DatabaseError, UnicodeDecodeError):
        return {}
    return found


def _covered(rows: dict[str, list[dict[str, Any]]], home: Home) -> dict[str, list[dict[str, Any]]]:
    """Without the rows of the run that trains, and without the columns that a folder does not tell."""
    return {
        table: [
            {name: value for name, value in row.items() if table != "run" or name not in LIVE_COLUMNS}
            for row in found
            if home.interrupted.id not in (row.get("id"), row.get("run_id"))
        ]
        for table, found in rows.items()
    }
