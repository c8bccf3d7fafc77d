"""How fast lists and comparisons are with 10,000 runs of 50 epochs in the index: ``python -m benchmarks.at_scale``.

The runs are invented and written straight into the database; the fifty of the comparison have folders with the answers for
10,000 images too. Requests go through the whole application in this process, after three that don't count.

``--others mlflow,tensorboard,aim`` installs these from PyPI, each into an environment of its own, gives them the same
configs and metrics, and asks their servers for the same work; there Runoff is asked through a socket too. ``--folder DIR``
keeps environments and data for the next time. ``--quick`` is a small index, with no claim about time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn
from safetensors.numpy import save_file
from sqlalchemy import insert

from app.main import create_app
from app.server import settle_memory
from app.settings import Settings
from app.store.database import make_engine, migrate, writing
from app.store.tables import Epoch, Run
from trainer.config import MODELS, config_hash, group_hash, parse_config
from trainer.run_folder import RunFolder

SEED, REPEATS = 0, 5
COMPARED, COMPARED_MANY = 10, 50
WARM_UP = 3
FILTER = "model=vgg and test_accuracy>0.9 and tag:final"
OTHERS = ("mlflow", "tensorboard", "aim")
METRICS = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
HELPER = Path(__file__).with_name("at_scale_others.py")


@dataclass(frozen=True)
class Load:
    """How much there is, and how often each request is repeated."""

    runs: int = 10_000
    epochs: int = 50
    images: int = 10_000
    requests: int = 40


QUICK = Load(runs=200, epochs=15, images=500, requests=2)


# The index -----------------------------------------------------------------------------------------------------------


@dataclass
class Index:
    """A home full of runs; ``compared`` are the ids of those with folders, in the order of the comparison."""

    home: Path
    compared: list[str] = field(default_factory=list)


def build(home: Path, load: Load) -> Index:
    """Fill an empty home. The same numbers are left as ``runs.jsonl``, one run a line, for the other tools."""
    (home / "runs").mkdir(parents=True)
    chance, index = random.Random(SEED), Index(home)
    rows, epochs, told = [], [], []
    for number in range(load.runs):
        run, history = _invented(home, number, load, chance, with_folder=_is_compared(number))
        if _is_compared(number):
            index.compared.append(run["id"])
        rows.append(run)
        epochs += history
        told.append(
            {
                "id": run["id"],
                "name": run["name"],
                "created_at": run["created_at"],
                "config": run["config"],
                "tags": run["tags"],
                "metrics": {m: [row[m] for row in history] for m in METRICS},
            }
        )
    engine = make_engine(Settings(home=home).database)
    migrate(engine)
    with writing(engine) as session:
        for table, values in ((Run, rows), (Epoch, epochs)):
            for start in range(0, len(values), 20_000):
                session.connection().execute(insert(table), values[start : start + 20_000])
        session.commit()
    engine.dispose()
    _answer(home, index.compared, load)
    (home / "runs.jsonl").write_text("\n".join(json.dumps(one) for one in told), encoding="utf-8")
    (home / "compared.json").write_text(json.dumps(index.compared), encoding="utf-8")
    return index


def _is_compared(number: int) -> bool:
    """The first repeats of the first ten recipes, and so on: 10 runs are 10 recipes, 50 are these with all repeats."""
    return number < COMPARED * REPEATS


def _invented(
    home: Path, number: int, load: Load, chance: random.Random, *, with_folder: bool
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A run and its epochs as rows of the tables."""
    recipe, seed = divmod(number, REPEATS)
    model = [*MODELS][recipe % 4]
    data = {"dataset": "mnist", "model": model, "epochs": load.epochs, "learning_rate": round(0.001 * (1 + recipe), 6)}
    config, _warnings = parse_config({**data, "batch_size": 32 << recipe % 4, "seed": seed})
    name = f"{MODELS[model].title}, learning_rate {config.learning_rate:g}, seed {seed}"
    run_id = RunFolder.create(home / "runs", config, name=name).id if with_folder else f"{number:010d}"
    begin = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=number)
    created_at, ended_at = (f"{at:%Y-%m-%dT%H:%M:%S}.000Z" for at in (begin, begin + timedelta(seconds=500)))
    best = 0.85 + 0.14 * chance.random()
    history = [_epoch(run_id, e, load, best, chance, ended_at) for e in range(1, load.epochs + 1)]
    last = history[-1]
    run = {
        "id": run_id,
        "name": name,
        "status": "finished",
        "config": config.model_dump(),
        "dataset": "mnist",
        "model": model,
        "config_hash": config_hash(config),
        "group": group_hash(config),
        "sweep": f"sweep{recipe // 100}",
        "seed": seed,
        "epochs": load.epochs,
        "tags": ["final"] if recipe % 10 < 4 else [],
        "notes": "",
        "archived": False,
        "warnings": [],
        "created_at": created_at,
        "queued_at": created_at,
        "started_at": created_at,
        "finished_at": ended_at,
        "attempt": 1,
        "fruitless_attempts": 0,
        "cancel_requested": False,
        "num_parameters": 6_422,
        "device": "cpu",
        "precision": "float32",
        "test_fingerprint": "f" * 64,
        "num_train": 60_000,
        "num_test": load.images,
        "class_names": [str(digit) for digit in range(10)],
        "steps_per_epoch": 938,
        "total_steps": 938 * load.epochs,
        "step": 938 * load.epochs,
        "epochs_done": load.epochs,
        **{metric: last[metric] for metric in METRICS},
        "test_correct": last["test_correct"],
        "test_total": load.images,
        "best_epoch": load.epochs,
        "best_score": last["test_accuracy"],
        "best_test_accuracy": last["test_accuracy"],
        "train_seconds": 10.0 * load.epochs,
        "evaluation_seconds": 1.0 * load.epochs,
        "images_per_second": 6_000.0,
        "flops": 1e9 * load.epochs,
        "event_offset": 1,
        "event_seq": 1,
        "version": number + 1,
        "updated_at": ended_at,
    }
    return run, history


def _epoch(run_id: str, epoch: int, load: Load, best: float, chance: random.Random, ended_at: str) -> dict[str, Any]:
    correct = round(load.images * (best - 0.5 / (epoch + 1) + 0.01 * chance.random()))
    loss = 2.3 / epoch + 0.1 * chance.random()
    return {
        "run_id": run_id,
        "epoch": epoch,
        "step": 938 * epoch,
        "attempt": 1,
        "train_loss": loss,
        "train_accuracy": min(1.0, correct / load.images + 0.01),
        "test_loss": loss + 0.05,
        "test_accuracy": correct / load.images,
        "test_correct": correct,
        "test_total": load.images,
        "learning_rate": 0.01,
        "seconds": 10.0,
        "evaluation_seconds": 1.0,
        "save_seconds": 0.1,
        "images_per_second": 6_000.0,
        "flops": 1e9,
        "ended_at": ended_at,
    }


def _answer(home: Path, run_ids: Sequence[str], load: Load) -> None:
    """Answers of the last epoch for each of the runs, as many of them right as its row says."""
    numbers = np.random.default_rng(SEED)
    labels = numbers.integers(0, 10, load.images).astype(np.uint16)
    difficulty = numbers.standard_normal(load.images)
    engine = make_engine(Settings(home=home).database)
    with writing(engine) as session:
        right = {run_id: session.get_one(Run, run_id).test_correct or 0 for run_id in run_ids}
    engine.dispose()
    for run_id in run_ids:
        order = np.argsort(difficulty + 0.5 * numbers.standard_normal(load.images))
        predicted = labels.copy()
        predicted[order[right[run_id] :]] = (predicted[order[right[run_id] :]] + 1) % 10
        rows = np.full((load.images, 10), np.log(0.01), np.float16)
        rows[np.arange(load.images), predicted] = np.log(0.9)
        confidence = numbers.uniform(0.5, 0.99, load.images).astype(np.float32)
        folder = RunFolder(home / "runs" / run_id)
        folder.predictions.mkdir(exist_ok=True)
        np.save(folder.labels_path, labels)
        tensors: dict[str, Any] = {"predicted": predicted, "confidence": confidence, "log_probabilities": rows}
        save_file(tensors, folder.predictions_path(load.epochs))


# Measuring -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """A piece of work: its requests, in order; ``target`` in milliseconds for the median."""

    title: str
    addresses: Sequence[str]
    target: float
    expected: str = ""  # stands in each answer, or it was not the work


@dataclass(frozen=True)
class Times:
    """Seconds of each repetition, and the size of the answers in bytes."""

    seconds: list[float]
    size: int
    first: float  # of the first request for it, which does not count

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def p95(self) -> float:
        """The smallest time that 95 % of the repetitions stay within."""
        return sorted(self.seconds)[max(0, -(-95 * len(self.seconds) // 100) - 1)]


def works(index: Index, load: Load) -> list[Work]:
    """What is asked of Runoff, with the targets for the median."""
    compared = index.compared
    few = "&".join(f"run={run_id}" for run_id in compared[::REPEATS])
    many = "&".join(f"run={run_id}" for run_id in compared)
    wanted = str(httpx.QueryParams({"q": FILTER}))
    page, listed = f">{load.runs:,} runs<", f'"total":{load.runs}'
    return [
        Work("runs page", ["/runs"], 60, page),
        Work("runs page, repeats apart", ["/runs?apart=true"], 60, page),
        Work("filtered page", [f"/runs?{wanted}"], 80, "runs match<"),
        Work("API, list of 100", ["/api/v1/runs?limit=100"], 40, listed),
        Work("API, filtered list of 100", [f"/api/v1/runs?limit=100&{wanted}"], 40, '"total":'),
        Work(f"compare page, {COMPARED} runs", [f"/compare?{few}"], 150, "verdict"),
        Work(f"API, compare {COMPARED} runs", [f"/api/v1/compare?{few}"], 150, '"pairs":[{'),
        Work(f"compare page, {COMPARED_MANY} runs", [f"/compare?{many}"], 400, "verdict"),
        Work(f"API, compare {COMPARED_MANY} runs", [f"/api/v1/compare?{many}"], 400, '"pairs":[{'),
    ]


async def ask_ours(index: Index, load: Load) -> dict[str, Times | str]:
    """Times by title; a sentence where the answer was no success."""
    app = create_app(Settings(home=index.home), train=False)
    found: dict[str, Times | str] = {}
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost", headers={"Accept": "text/html"}) as client,
    ):
        settle_memory()  # as the server does
        for work in works(index, load):
            found[work.title] = await _repeat(client, work, load.requests)
    return found


async def _repeat(client: httpx.AsyncClient, work: Work, repetitions: int) -> Times | str:
    seconds, size, first = [], 0, 0.0
    for number in range(WARM_UP + repetitions):
        started = time.perf_counter()
        answers = [await client.get(address) for address in work.addresses]
        taken = time.perf_counter() - started
        for answer in answers:
            if not answer.is_success:
                return f"answered {answer.status_code}"
            if work.expected not in answer.text:
                return f"the answer is not about {work.expected}"
        size = sum(len(answer.content) for answer in answers)
        if number >= WARM_UP:
            seconds.append(taken)
        first = first or taken
    return Times(seconds, size, first)


def repeat(act: Callable[[], int], repetitions: int) -> Times:
    """``act`` asks a server once and answers with the number of bytes that came."""
    seconds, size, first = [], 0, 0.0
    for number in range(WARM_UP + repetitions):
        started = time.perf_counter()
        size = act()
        taken = time.perf_counter() - started
        if number >= WARM_UP:
            seconds.append(taken)
        first = first or taken
    return Times(seconds, size, first)


def say_ours(found: dict[str, Times | str], index: Index, load: Load) -> None:
    """Print the times, with their targets where the load is the whole one. Raises ``SystemExit`` where an answer failed."""
    failed = []
    for work in works(index, load):
        times = found[work.title]
        if isinstance(times, str):
            failed.append(f"{work.title}: {times}")
            continue
        met = "met" if 1000 * times.median <= work.target else "missed"
        words = [
            f"median {1000 * times.median:.1f} ms",
            f"p95 {1000 * times.p95:.1f} ms",
            f"first {1000 * times.first:.0f} ms",
            f"{times.size / 1000:,.0f} kB",
            *([f"target {work.target:g} ms {met}"] if load == Load() else []),
        ]
        print(f"{work.title}: {', '.join(words)}", flush=True)
    if failed:
        raise SystemExit("\n".join(failed))


# Other tools ---------------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def ours_by_socket(index: Index) -> Iterator[httpx.Client]:
    """Runoff behind a socket, in a thread of this process."""
    app = create_app(Settings(home=index.home), train=False)
    server = uvicorn.Server(uvicorn.Config(app, port=free_port(), log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.05)
        with httpx.Client(
            base_url=f"http://127.0.0.1:{server.config.port}/api/v1", timeout=60, trust_env=False
        ) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


def ours_as_others(index: Index, load: Load) -> dict[str, Times]:
    """What every tool is asked for, from Runoff: JSON of runs, and all epochs of ten."""
    few = index.compared[::REPEATS]

    def got(client: httpx.Client, path: str, **params: Any) -> int:
        return len(client.get(path, params=params).raise_for_status().content)

    with ours_by_socket(index) as client:
        settle_memory()
        return {
            "newest 100 runs": repeat(lambda: got(client, "/runs", limit=100), load.requests),
            "filtered, first 100": repeat(lambda: got(client, "/runs", limit=100, q=FILTER), load.requests),
            f"histories of {len(few)} runs": repeat(
                lambda: sum(got(client, f"/runs/{run_id}/epochs") for run_id in few), load.requests
            ),
        }


def install(folder: Path, name: str) -> Path:
    """The Python of an environment with the newest ``name`` from PyPI. Raises ``CalledProcessError``."""
    python = folder / "environments" / name / "bin" / "python"
    done = python.parent.parent / "installed"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", python.parent.parent], check=True)
        more = ["setuptools<81"] if name == "tensorboard" else []  # its plugins still import pkg_resources
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", name, *more], check=True, capture_output=True, text=True
        )
        done.touch()
    return python


def measure_other(folder: Path, name: str, index: Index, load: Load) -> dict[str, Any]:
    """Fill the tool's store and time its answers; the helper runs on the tool's own Python and imports nothing of ours."""
    python = install(folder, name)
    store = index.home / "others" / name  # one that was made for another home has other ids
    arguments = [str(index.home), str(store), str(load.requests), str(free_port()), str(load.runs)]
    done = subprocess.run([python, HELPER, name, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def say_others(folder: Path, names: Sequence[str], index: Index, load: Load) -> None:
    """Runoff is timed before and after each tool, half of the repetitions each, so that a busy machine hits both."""
    half = replace(load, requests=load.requests // 2)
    for name in names:
        before = ours_as_others(index, half)
        try:
            found = measure_other(folder, name, index, load)
        except (subprocess.CalledProcessError, json.JSONDecodeError, IndexError) as error:
            lines = (getattr(error, "stderr", None) or "").strip().splitlines()
            print(
                f"{name} could not be measured on Python {platform.python_version()}: {lines[-1] if lines else error}"
            )
            continue
        after = ours_as_others(index, half)
        print(f"{name} {found['version']}, {found['runs']:,} runs, {found['note']}")
        for title, seconds in found["seconds"].items():
            theirs = Times(seconds, 0, 0.0)
            ours = Times(before[title].seconds + after[title].seconds, 0, 0.0)
            sides = [f"median {1000 * side.median:.0f} ms, p95 {1000 * side.p95:.0f} ms" for side in (theirs, ours)]
            ratio = f"{theirs.median / ours.median:.1f} times as long"
            print(f"  {title}: {sides[0]}; Runoff {sides[1]}; {ratio}", flush=True)


# The program ---------------------------------------------------------------------------------------------------------


@contextmanager
def prepared(folder: Path | None, load: Load) -> Iterator[tuple[Path, Index]]:
    """The index, from ``folder`` if it is there; without a folder it is temporary."""
    with tempfile.TemporaryDirectory(prefix="runoff-scale-") as name:
        root = (folder or Path(name)).resolve()
        home = root / "home"
        if (home / "compared.json").exists():
            yield root, Index(home, json.loads((home / "compared.json").read_text(encoding="utf-8")))
            return
        started = time.perf_counter()
        index = build(home, load)
        print(f"Written in {time.perf_counter() - started:.0f} s", flush=True)
        yield root, index


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small index, to see that it works")
    parser.add_argument("--others", nargs="?", const=",".join(OTHERS), default="", help=f"of {','.join(OTHERS)}")
    parser.add_argument("--folder", type=Path, help="keeps what is built and installed")
    options = parser.parse_args()
    load = QUICK if options.quick else Load()
    with prepared(options.folder, load) as (folder, index):
        print(
            f"{load.runs:,} runs x {load.epochs} epochs; {load.requests} requests each; {platform.machine()}, "
            f"Python {platform.python_version()}",
            flush=True,
        )
        if options.others:
            say_others(folder, options.others.split(","), index, load)
        else:
            say_ours(asyncio.run(ask_ours(index, load)), index, load)


if __name__ == "__main__":
    main()
