"""A server of which one file operation fails. It is forked from a process that has loaded it, so that it starts fast.

``python -m tests.faults.server_calls`` is that process, with ``fail_calls.c`` preloaded.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from tests.faults.forking import ForkingProcess
from trainer.config import RunConfig
from trainer.run_folder import RunFolder

IMPORT_SECONDS = 60.0
SWEEP = {"base": {"dataset": "digits", "model": "fc"}, "grid": {"seed": [10, 11, 12]}, "name": "three"}
Request = tuple[str, str, dict[str, Any] | None]  # method, path, JSON


class Servers(ForkingProcess):
    """The process that forks servers."""

    def __init__(self, library: Path) -> None:
        variables = {"LD_PRELOAD": str(library), "RUNOFF_FAULTS": str(library)}
        variables |= {"RUNOFF_RESERVE_MB": "0", "RUNOFF_MEASURE": "false"}
        super().__init__("tests.faults.server_calls", variables)

    def run(self, home: Path, **request: Any) -> dict[str, Any]:
        """Fork a server for a request of this module. Returns its answer, and what it wrote as ``log``."""
        return self.ask({"home": str(home), **request})


# The process ---------------------------------------------------------------------------------------------------------


def main() -> None:
    warnings.simplefilter("ignore")  # starlette asks for another client library
    with tempfile.TemporaryDirectory() as folder:  # what a forked server needs is imported and compiled
        RunFolder.create(Path(folder) / "home" / "runs", RunConfig(dataset="digits", model="fc"))
        for _time in range(2):
            _look({"home": f"{folder}/home"}, None)
    library = ctypes.CDLL(os.environ.pop("RUNOFF_FAULTS"))
    os.environ.pop("LD_PRELOAD")  # for the children of a server
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_fork(json.loads(line), library)) + "\n")
        sys.stdout.flush()


def _fork(request: dict[str, Any], library: ctypes.CDLL) -> dict[str, Any]:
    answer, log = Path(f"{request['home']}.answer"), Path(f"{request['home']}.log")
    answer.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        _in_child(request, library, answer, log)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    values = json.loads(answer.read_text()) if answer.exists() else {}
    return {"exit": status, "log": log.read_text(errors="replace"), **values}


def _in_child(request: dict[str, Any], library: ctypes.CDLL, answer: Path, log: Path) -> NoReturn:
    code = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
        os.environ["RUNOFF_HOME"] = request["home"]
        result = {"serve": _serve, "look": _look}[request["do"]](request, library)
        answer.write_text(json.dumps(result))
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        os._exit(code)


def _serve(request: dict[str, Any], library: ctypes.CDLL) -> dict[str, Any]:
    """Start a server and send it requests; the fault comes at its start, or while it answers."""
    from starlette.testclient import TestClient

    from app.main import create_app
    from app.server import serving
    from app.settings import Settings

    settings = Settings(home=Path(request["home"]))
    calls: Path | None = Path(request["calls"]) if request.get("calls") else None
    record = os.open(calls, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644) if calls else -1

    def arm() -> None:
        library.fault_arm(request["home"].encode(), request["number"], request["error"], record)

    result: dict[str, Any] = {"statuses": [], "refused_start": ""}
    if request["at_start"]:
        arm()
    try:
        server = ExitStack()
        state = server.enter_context(serving(settings, train=False))
    except (OSError, RuntimeError) as error:
        library.fault_arm(None, -1, 0, -1)
        return result | {"refused_start": str(error)}
    app = create_app(settings, train=False, state=state)
    with server, TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        if request["at_start"]:
            for _time in range(3):  # as the scheduler does, which tries again
                scheduler: Any = state.scheduler
                scheduler._guarded(scheduler.indexer.tick)
        else:
            arm()
        for method, path, body in request["requests"]:
            if body is not None and "upload" in body:
                answer = client.request(
                    method,
                    path,
                    data={"name": body["name"]},
                    files={"file": ("images.zip", Path(body["upload"]).read_bytes())},
                )
            else:
                answer = client.request(method, path, json=body)
            result["statuses"].append(answer.status_code)
            result["text"] = answer.text[:300]
        _wait_for_imports(client)
        result["count"] = library.fault_count()
        library.fault_arm(None, -1, 0, -1)
    return result


def _wait_for_imports(client: Any) -> None:
    imports = client.app.state.runoff.imports
    deadline = time.monotonic() + IMPORT_SECONDS
    while any(imports.is_active(work.name) for work in imports.active()) and time.monotonic() < deadline:
        time.sleep(0.01)


def _look(request: dict[str, Any], _library: object) -> dict[str, Any]:
    """Start a server without a fault. What it shows, and what an index shows that is made from the folders alone."""
    from starlette.testclient import TestClient

    from app.main import create_app
    from app.runs import copying, indexer
    from app.settings import Settings
    from app.store.database import make_engine

    home = Path(request["home"])
    copying.COPYING_SECONDS = 0.0  # the home is a copy, of which nothing more will come
    with TestClient(create_app(Settings(home=home), train=False), base_url="http://localhost") as client:
        state = client.app.state.runoff  # type: ignore[attr-defined]
        _wait_for_imports(client)  # an interrupted one continues
        state.indexer.tick()
        runs = client.get("/api/v1/runs?limit=1000").json()["runs"]
        rows = _rows(state.engine)
        sets = [(each["name"], each["status"]) for each in client.get("/api/v1/datasets").json()["datasets"]]
        pages = [client.get(path, headers={"accept": "text/html"}).status_code for path in ("/runs",)]
        other = make_engine(Path(f"{home}.other"))
        Path(f"{home}.other").write_bytes(_empty_index())
        indexer.Indexer(other, state.settings.runs).rebuild()
        rebuilt = _rows(other)
        rows_after = rows
        if client.post("/api/v1/reindex").status_code == 200:
            rows_after = _rows(state.engine)
    Path(f"{home}.other").unlink()
    differs = [
        f"{run} {rows.get(run)} {rebuilt.get(run)} {rows_after.get(run)}"
        for run in rows.keys() | rebuilt
        if not rows.get(run) == rebuilt.get(run) == rows_after.get(run)
    ]
    shown = sorted([run["config"]["seed"], run["name"], run["status"], run["tags"], run["archived"]] for run in runs)
    return {
        "shown": {
            "runs": shown,
            "sweeps": sorted(Counter(run["sweep"] for run in runs if run["sweep"]).values()),
            "trash": sorted(_seed(path) for path in home.glob("trash/[!.]*")),
            "data sets": sorted(sets),
        },
        "differs": differs,
        "pages": pages,
        "left": sorted(
            path.relative_to(home).as_posix()
            for place in ("uploads/*", "starting/*", "runs/.*")
            for path in home.glob(place)
        ),
    }


@cache
def _empty_index() -> bytes:
    from app.store.database import open_index

    with tempfile.TemporaryDirectory() as folder:
        open_index(Path(folder) / "index")
        return (Path(folder) / "index").read_bytes()


def _rows(engine: Any) -> dict[str, dict[str, Any]]:
    from sqlmodel import select

    from app.store.database import reading
    from app.store.tables import Run

    with reading(engine) as session:
        return {run.id: run.model_dump(exclude={"version"}) for run in session.exec(select(Run)).all()}


def _seed(path: Path) -> int:
    return int(json.loads((path / "config.json").read_text())["seed"])


if __name__ == "__main__":
    main()
