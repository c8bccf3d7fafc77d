"""Runs and metrics in the store of another tool, and how fast its server answers about them.

Run by ``benchmarks/at_scale.py`` on the Python of the tool's own environment; imports nothing of Runoff's and nothing of a
tool but the one it is named. The last line of its output is JSON: version, runs, note, seconds of each piece of work.
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

METRICS = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
START_SECONDS = 400.0
FILL_SECONDS = 300.0  # for a store that can only be written run by run
WARM_UP = 3
FEW = 10


@dataclass
class Given:
    """What one call of this program is about."""

    home: Path
    folder: Path  # of the tool's store
    requests: int
    port: int
    num_runs: int

    def runs(self) -> list[dict[str, Any]]:
        with (self.home / "runs.jsonl").open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines][: self.num_runs]

    def few(self) -> list[str]:
        """Ids of the runs whose histories are asked for: as Runoff's."""
        compared: list[str] = json.loads((self.home / "compared.json").read_text(encoding="utf-8"))
        return compared[:: len(compared) // FEW]

    @property
    def num_epochs(self) -> int:
        return len(self.runs()[0]["metrics"]["test_loss"])

    def num_filtered(self) -> int:
        """How many runs the filter of the benchmark lets through."""
        return sum(
            run["config"]["model"] == "vgg" and run["metrics"]["test_accuracy"][-1] > 0.9 and "final" in run["tags"]
            for run in self.runs()
        )

    def repeat(self, act: Callable[[], int]) -> list[float]:
        seconds = []
        for number in range(WARM_UP + self.requests):
            started = time.perf_counter()
            act()
            if number >= WARM_UP:
                seconds.append(time.perf_counter() - started)
        return seconds


class Http:
    """A kept connection. An answer that is no success, or is empty, is an error."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)

    def ask(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> bytes:
        text = None if body is None else json.dumps(body) if kind == "application/json" else urlencode(body, doseq=True)
        self.connection.request(method, path, text, {"Content-Type": kind} if text else {})
        answer = self.connection.getresponse()
        content = answer.read()
        if answer.status != 200 or not content:
            raise RuntimeError(f"{method} {path}: {answer.status} {content[:200]!r}")
        return content


@contextmanager
def serving(command: list[str], port: int, ready: Callable[[Http], bool], **environment: str) -> Iterator[float]:
    """A server while the block runs; the seconds until it was ready."""
    started = time.perf_counter()
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **environment},
        start_new_session=True,
    )
    try:
        while True:
            try:
                if ready(Http(port)):
                    break
            except (OSError, RuntimeError, http.client.HTTPException):
                pass
            if process.poll() is not None or time.perf_counter() - started > START_SECONDS:
                raise RuntimeError(f"{command[0]} did not start")
            time.sleep(0.25)
        yield time.perf_counter() - started
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


def tool(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


# MLflow --------------------------------------------------------------------------------------------------------------


def fill_mlflow(given: Given, uri: str) -> None:
    from mlflow.store.tracking.dbmodels import models
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from sqlalchemy import insert

    store = SqlAlchemyStore(uri, str(given.folder / "artifacts"))
    rows: dict[Any, list[dict[str, Any]]] = {
        kind: [] for kind in (models.SqlRun, models.SqlParam, models.SqlTag, models.SqlMetric, models.SqlLatestMetric)
    }
    for number, run in enumerate(given.runs()):
        run_id, at = f"{run['id']:0>32}", 1_767_225_600_000 + 60_000 * number
        rows[models.SqlRun].append(
            {
                "run_uuid": run_id,
                "name": run["name"],
                "status": "FINISHED",
                "start_time": at,
                "end_time": at + 500_000,
                "lifecycle_stage": "active",
                "experiment_id": 0,
                "artifact_uri": "",
                "user_id": "u",
                "source_type": "LOCAL",
                "source_name": "",
                "entry_point_name": "",
                "source_version": "",
            }
        )
        rows[models.SqlParam] += [{"run_uuid": run_id, "key": k, "value": str(v)} for k, v in run["config"].items()]
        rows[models.SqlTag] += [{"run_uuid": run_id, "key": tag, "value": "yes"} for tag in run["tags"]]
        for key in METRICS:
            history = [
                {"run_uuid": run_id, "key": key, "value": value, "timestamp": at + step, "step": step, "is_nan": False}
                for step, value in enumerate(run["metrics"][key], 1)
            ]
            rows[models.SqlMetric] += history
            rows[models.SqlLatestMetric].append(history[-1])
    with store.engine.begin() as connection:
        for kind, values in rows.items():
            for start in range(0, len(values), 50_000):
                connection.execute(insert(kind.__table__), values[start : start + 50_000])


def mlflow(given: Given) -> dict[str, Any]:
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    uri = f"sqlite:///{given.folder}/mlflow.db"
    if not (given.folder / "filled").exists():
        fill_mlflow(given, uri)
        (given.folder / "filled").touch()
    rest, bulk = "/api/2.0/mlflow", "/ajax-api/2.0/mlflow/metrics/get-history-bulk"
    newest = {"experiment_ids": ["0"], "max_results": 100, "order_by": ["attributes.start_time DESC"]}
    wanted = "params.model = 'vgg' and metrics.test_accuracy > 0.9 and tags.final = 'yes'"
    few, num_filtered = [f"{run_id:0>32}" for run_id in given.few()], given.num_filtered()
    num_epochs = given.num_epochs
    chosen = "&".join(f"run_id={run}" for run in few)
    command = [tool("mlflow"), "server", "--backend-store-uri", uri, "--port", str(given.port), "--workers", "1"]
    with serving(command, given.port, lambda http: bool(http.ask("GET", "/health"))):
        http = Http(given.port)

        def searched(body: dict[str, Any], num_runs: int = given.num_runs) -> int:
            content = http.ask("POST", f"{rest}/runs/search", body)
            assert len(json.loads(content)["runs"]) == min(100, num_runs)
            return len(content)

        def histories() -> int:
            found = [http.ask("GET", f"{bulk}?{chosen}&metric_key={key}") for key in METRICS]
            assert all(len(json.loads(content)["metrics"]) == len(few) * num_epochs for content in found)
            return sum(len(content) for content in found)

        seconds = {
            "newest 100 runs": given.repeat(lambda: searched(newest)),
            "filtered, first 100": given.repeat(lambda: searched({**newest, "filter": wanted}, num_filtered)),
            f"histories of {len(few)} runs": given.repeat(histories),
        }
    return {
        "runs": given.num_runs,
        "seconds": seconds,
        "note": "SQLite store; histories by the route of its own pages, a request for each metric",
    }


# TensorBoard ---------------------------------------------------------------------------------------------------------


def fill_tensorboard(given: Given, logs: Path) -> None:
    from tensorboard.compat.proto import event_pb2, summary_pb2
    from tensorboard.summary.writer.record_writer import RecordWriter

    for number, run in enumerate(given.runs()):
        folder = logs / run["id"]
        folder.mkdir(parents=True)
        at = 1_767_225_600.0 + 60 * number
        with (folder / f"events.out.tfevents.{int(at)}.host").open("wb") as file:
            writer = RecordWriter(file)
            writer.write(event_pb2.Event(wall_time=at, file_version="brain.Event:2").SerializeToString())
            for step in range(len(run["metrics"]["test_loss"])):
                values = [summary_pb2.Summary.Value(tag=k, simple_value=run["metrics"][k][step]) for k in METRICS]
                summary = summary_pb2.Summary(value=values)
                writer.write(event_pb2.Event(wall_time=at + step, step=step + 1, summary=summary).SerializeToString())


def tensorboard(given: Given) -> dict[str, Any]:
    logs = given.folder / "logs"
    if not (given.folder / "filled").exists():
        fill_tensorboard(given, logs)
        (given.folder / "filled").touch()
    tags = "/data/plugin/scalars/tags"
    command = [tool("tensorboard"), "--logdir", str(logs), "--port", str(given.port), "--reload_interval", "0"]
    few, num_epochs = given.few(), given.num_epochs
    form = "application/x-www-form-urlencoded"

    def histories(http: Http) -> list[bytes]:
        ask = [{"tag": key, "runs": few} for key in METRICS]
        return [http.ask("POST", "/data/plugin/scalars/scalars_multirun", body, form) for body in ask]

    def is_loaded(http: Http) -> bool:
        told = json.loads(http.ask("GET", tags))
        if sum(len(of_run) == len(METRICS) for of_run in told.values()) < given.num_runs:
            return False
        return all(sum(map(len, json.loads(one).values())) == len(few) * num_epochs for one in histories(http))

    with serving(command, given.port, is_loaded) as loading:
        http = Http(given.port)
        seconds = {
            "newest 100 runs": given.repeat(lambda: len(http.ask("GET", tags))),
            f"histories of {len(few)} runs": given.repeat(lambda: sum(map(len, histories(http)))),
        }
    note = (
        f"event files read in {loading:.0f} s before; its list is of all runs and has no order; no filter on the server"
    )
    return {"runs": given.num_runs, "seconds": seconds, "note": note}


# Aim -----------------------------------------------------------------------------------------------------------------


def fill_aim(given: Given) -> None:
    """Write runs until the time is up, the compared ones first."""
    from aim import Repo, Run

    Repo.from_path(str(given.folder), init=True)
    started, hashes = time.perf_counter(), {}
    for told in given.runs():
        run = Run(repo=str(given.folder), system_tracking_interval=None, capture_terminal_logs=False)
        run.name = told["name"]
        run["hparams"] = {key: value for key, value in told["config"].items() if value is not None}
        run["final"], run["test_accuracy"] = "final" in told["tags"], told["metrics"]["test_accuracy"][-1]
        for key in METRICS:
            for step, value in enumerate(told["metrics"][key], 1):
                run.track(value, name=key, step=step)
        hashes[told["id"]] = run.hash
        run.close()
        if time.perf_counter() - started > FILL_SECONDS:
            break
    # else its server does this while it is asked, and breaks connections off
    command = [tool("aim"), "storage", "--repo", str(given.folder), "reindex", "-y"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    (given.folder / "filled").write_text(json.dumps(hashes), encoding="utf-8")


def aim(given: Given) -> dict[str, Any]:
    if not (given.folder / "filled").exists():
        fill_aim(given)
    hashes = json.loads((given.folder / "filled").read_text(encoding="utf-8"))
    num_runs = len(hashes)
    few = [hashes[run_id] for run_id in given.few()]
    wanted = 'run.hparams.model == "vgg" and run.test_accuracy > 0.9 and run.final'
    command = [tool("aim"), "up", "--repo", str(given.folder), "--port", str(given.port)]
    with serving(command, given.port, lambda http: bool(http.ask("GET", "/api/projects/")), AIM_TRACK_USAGE="0"):
        http = Http(given.port)

        def searched(query: str) -> int:
            return len(http.ask("GET", "/api/runs/search/run/?" + urlencode({"q": query, "limit": 100})))

        query = f"run.hash in {few!r} and metric.name in {list(METRICS)!r}"
        address = "/api/runs/search/metric/?" + urlencode({"q": query, "p": 50})
        seconds = {
            "newest 100 runs": given.repeat(lambda: searched("")),
            "filtered, first 100": given.repeat(lambda: searched(wanted)),
            f"histories of {len(few)} runs": given.repeat(lambda: len(http.ask("GET", address))),
        }
    note = "as many as its client wrote in the time given" if num_runs < given.num_runs else "its own store"
    return {"runs": num_runs, "seconds": seconds, "note": note}


def main() -> None:
    name, home, folder, requests, port, num_runs = sys.argv[1:]
    given = Given(Path(home), Path(folder), int(requests), int(port), int(num_runs))
    given.folder.mkdir(parents=True, exist_ok=True)
    found = {"mlflow": mlflow, "tensorboard": tensorboard, "aim": aim}[name](given)
    print(json.dumps({"version": version(name), **found}))


if __name__ == "__main__":
    main()
