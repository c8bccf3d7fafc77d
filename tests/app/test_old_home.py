"""A home that version 0.1.0 left behind: its database opens, its folders give the same answers, its runs are resumed.

``tests/data/README.md`` says what is in the archive. Answers may have gained fields since; what was there stays the same.
"""

from __future__ import annotations

import csv
import json
import math
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from starlette.testclient import TestClient

from app.main import create_app
from app.settings import Settings
from trainer import environment, runtime
from trainer.run_folder import RunFolder, read_events

pytestmark = pytest.mark.slow

ARCHIVE = Path(__file__).parents[1] / "data" / "home-0.1.0.tar.xz"
# Sentences of a comparison: they may be worded better. Everything else is compared.
SENTENCES = {"fairness", "heading", "explanation", "evidence", "says", "says_not", "notes", "text", "title"}
# A code of verdicts; the same field of "budget" holds a few words.
CODE = re.compile(r"[a-z_]+")
# The last digits of a floating-point result may depend on the CPU and on the versions of the libraries.
TOLERANCE = 1e-9
Tensors = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Bounds:
    """How far from the stored numbers another CPU may end.

    ``loss`` is relative; ``weights`` is a part of a tensor's largest value, None where weights can't be compared.
    """

    loss: float
    weights: float | None


# Other kernels round differently, and training carries that on. tests/data/README.md has the measurements behind these.
BOUNDS = {"cnn": Bounds(1e-5, 1e-4), "vgg": Bounds(0.05, None), "vgg in bfloat16": Bounds(0.25, None)}


@pytest.fixture
def answers(tmp_path: Path, home: Path) -> Path:
    """The unpacked home at ``home``; returns the folder of what version 0.1.0 answered."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    assert (home / "runoff.sqlite3").exists()
    return tmp_path / "answers"


@pytest.fixture
def ids(answers: Path) -> dict[str, str]:
    """The name of each run -> its id; of repeats the first."""
    lines = (line.split(" ", 1) for line in (answers / "runs.txt").read_text().splitlines())
    names: dict[str, str] = {}
    for run_id, name in lines:
        names.setdefault(name, run_id)
    return names


# Answers -------------------------------------------------------------------------------------------------------------


def test_the_old_database_opens_and_gives_the_same_answers(answers: Path, home: Path) -> None:
    with TestClient(create_app(Settings(home=home), train=False), base_url="http://localhost") as api:
        assert changed_answers(api, answers) == []


def test_folders_that_are_indexed_again_give_the_same_answers(answers: Path, home: Path) -> None:
    for path in home.glob("runoff.sqlite3*"):
        path.unlink()
    with TestClient(create_app(Settings(home=home), train=False), base_url="http://localhost") as api:
        assert api.post("/api/v1/reindex").json() == {"runs": 9}
        assert changed_answers(api, answers) == []


def test_a_changed_number_is_noticed(answers: Path, home: Path) -> None:
    epochs = next(path for path in answers.glob("epochs-*.json") if '"epoch":3' in path.read_text())
    epochs.write_text(epochs.read_text().replace('"epoch":3', '"epoch":4'))
    pairs = answers / "pairs-two.csv"
    pairs.write_text(pairs.read_text().replace(",b_better,", ",a_better,"))
    with TestClient(create_app(Settings(home=home), train=False), base_url="http://localhost") as api:
        assert {line.split(":")[0] for line in changed_answers(api, answers)} == {epochs.name, pairs.name}


def changed_answers(api: TestClient, answers: Path) -> list[str]:
    """Where today's answers differ from the stored ones, a line each."""
    addresses = json.loads((answers / "addresses.json").read_text())
    assert len(addresses) >= 20
    changes: list[str] = []
    for name, address in addresses.items():
        answer = api.get(address)
        assert answer.status_code == 200, f"{name}: {answer.text}"
        before, now = read(name, (answers / name).read_bytes()), read(name, answer.content)
        skipped = frozenset() if name == "runs.json" else frozenset(SENTENCES)  # the notes of a run are its user's
        changes += [f"{name}: {change}" for change in differences(before, now, skipped)]
    return changes


def read(name: str, content: bytes) -> Any:
    """JSON, or a CSV as one dictionary a line, with its numbers as numbers."""
    text = content.decode("utf-8-sig")
    if name.endswith(".json"):
        return json.loads(text)
    lines = csv.DictReader(text.splitlines())
    return [{key: number_or_text(value) for key, value in line.items()} for line in lines]


def number_or_text(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value


def differences(before: Any, now: Any, skipped: frozenset[str], place: str = "") -> Iterator[str]:
    """Each place where ``now`` lacks or changes something of ``before``; fields that were added don't count."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key, value in before.items():
            if key not in now:
                yield f"{place}.{key} is missing"
            elif key not in skipped and not is_sentence(key, value):
                yield from differences(value, now[key], skipped, f"{place}.{key}")
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for number, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from differences(old, new, skipped, f"{place}[{number}]")
    elif isinstance(before, float) and isinstance(now, int | float):
        if not math.isclose(before, now, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
            yield f"{place}: {before} became {now}"
    elif before != now or type(before) is not type(now):
        yield f"{place}: {before!r} became {now!r}"


def is_sentence(key: str, value: Any) -> bool:
    return key == "verdict" and isinstance(value, str) and CODE.fullmatch(value) is None


# Resuming ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def _threads_as_before() -> Iterator[None]:
    """A resumed run sets the threads of its process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads_as_before")
@pytest.mark.parametrize("name", ["cnn", "vgg", "vgg in bfloat16"])
def test_an_interrupted_run_is_resumed_to_the_numbers_of_the_finished_one(
    answers: Path, home: Path, ids: dict[str, str], name: str
) -> None:
    whole, folder = (RunFolder(home / "runs" / ids[key]) for key in (name, f"{name} interrupted"))
    assert runtime.execute(folder, 2, num_threads=1) == runtime.FINISHED
    events = read_events(folder.events_path).events
    assert events[-1]["type"] == "finished", events[-1]
    assert [event["first_epoch"] for event in events if event["type"] == "started"] == [1, 2]
    losses, expected = losses_of(folder), losses_of(whole)
    weights, stored = (load_file(run.checkpoint_path(3)) for run in (folder, whole))
    assert weights.keys() >= stored.keys()
    if calculates_as_then(whole, answers):
        assert losses == expected
        for key, values in stored.items():
            np.testing.assert_array_equal(weights[key], values, err_msg=key)
        return
    assert_close(name, losses, expected, weights, stored)


def assert_close(name: str, losses: Any, expected: Any, weights: Tensors, stored: Tensors) -> None:
    """The run ended near the stored one, as near as another CPU can be expected to come."""
    bounds = BOUNDS[name]
    np.testing.assert_allclose(losses, expected, rtol=bounds.loss)
    if bounds.weights is not None:
        for key, values in stored.items():
            largest = float(np.abs(values).max())
            np.testing.assert_allclose(weights[key], values, rtol=0, atol=bounds.weights * largest, err_msg=key)


def calculates_as_then(whole: RunFolder, answers: Path) -> bool:
    """Whether this machine and its libraries are those of the archive, so that bits can be expected."""
    stored = whole.read_environment() or {}
    then = json.loads((answers / "machine.json").read_text())
    flags = re.search(r"^flags\s*:(.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    now = {"numba": numba.__version__, "flags": " ".join(sorted(flags[1].split())) if flags else ""}
    return (
        stored["machine"] == environment.machine()
        and stored["torch"] == torch.__version__
        and stored["numpy"] == np.__version__
        and all(then[key] == value for key, value in now.items())
    )


def losses_of(folder: RunFolder) -> list[float]:
    """The test loss of each epoch."""
    events = read_events(folder.events_path).events
    return [event["test_loss"] for event in events if event["type"] == "epoch"]
