"""The whole product: a sweep against notebook loops one after the other, and what recording costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from app.cli.client import Client
from benchmarks.product import finished, open_page, serving, wait
from benchmarks.report import Result, count, percent, spread, times
from benchmarks.sides import Bench, Measured, check_same_work, each, interleaved, loop_of, ratio_of
from trainer.events import TERMINAL
from trainer.run_folder import RunFolder, iter_valid_events, write_bytes

_OTHER_SEED = 1000  # of the run before, which warms the host


def sweep(bench: Bench) -> Iterator[Result]:
    """Runs of fc as one sweep through a real server, against the notebook's loops one after the other."""
    repeats = bench.plan.sweep_repeats
    bench.settle(bench.recipe("fc"))
    sides = {
        "notebook loop": lambda _number: bench.notebook("fc", seeds=range(repeats)),
        "Runoff": lambda _number: _sweep_through_server(bench, repeats),
    }
    raw = interleaved(bench.plan.repeats, sides)
    for notebook, runoff in zip(raw["notebook loop"], raw["Runoff"], strict=True):
        for one, other in zip(notebook["loops"], runoff["loops"], strict=True):
            check_same_work(one, other)
    seconds = {
        "notebook loop": [sum(loop["seconds"] for loop in one["loops"]) for one in raw["notebook loop"]],
        "Runoff": [one["seconds"] for one in raw["Runoff"]],
    }
    ratio = ratio_of(seconds["notebook loop"], seconds["Runoff"])
    yield Result(
        "sweep",
        f"A sweep of {count(repeats, 'FC run')} through the server",
        times(ratio),
        f"{bench.plan.repeats} each",
        sentence=f"From `POST /sweeps` until the API says that the last of the {count(repeats, 'run')} is finished, with "
        "run folders, checkpoints and index, on a server that has trained one run before. The notebook's side runs as "
        "many loops one after the other, in one process that has its data open.",
        head=["side", "seconds in total", "seconds per run"],
        rows=[
            [side, spread(values), spread([value / repeats for value in values])] for side, values in seconds.items()
        ],
        ratio=ratio,
        raw=raw,
    )


def _sweep_through_server(bench: Bench, repeats: int) -> Measured:
    with serving(bench.home) as server:
        client, recipe = server.client, bench.recipe("fc")
        finished(client, client.start_run(**recipe, seed=_OTHER_SEED)["id"])
        begin = time.perf_counter()
        sweep_id = client.start_sweep(base=recipe, repeats=repeats)["id"]
        wait(lambda: _all_ended(client, sweep_id), pause_seconds=0.05)
        seconds = time.perf_counter() - begin
        runs = [finished(client, run["id"]) for run in client.call("GET", f"/sweeps/{sweep_id}")["runs"]]
    return {"seconds": seconds, "loops": [work_of(bench.home, run["id"]) for run in runs]}


def _all_ended(client: Client, sweep_id: str) -> bool:
    return all(run["status"] in TERMINAL for run in client.call("GET", f"/sweeps/{sweep_id}")["runs"])


def work_of(home: Path, run_id: str) -> dict[str, Any]:
    """What a finished run below ``home`` did, from its events; ``loop_seconds`` from its start to its end."""
    events = [event for event, _end in iter_valid_events(RunFolder(home / "runs" / run_id).events_path)]
    begun = next(event for event in events if event["type"] == "started")
    epochs = [event for event in events if event["type"] == "epoch"]
    return {
        "steps": epochs[-1]["step"],
        "num_trained": begun["num_train"] * len(epochs),
        "num_tested": epochs[-1]["test_total"],
        "accuracy": epochs[-1]["test_accuracy"],
        "loop_seconds": _at(events[-1]) - _at(begun),
        "save_seconds": [epoch["save_seconds"] for epoch in epochs],
    }


def _at(event: Mapping[str, Any]) -> float:
    return datetime.fromisoformat(event["time"]).timestamp()


# Recording -----------------------------------------------------------------------------------------------------------


def recording(bench: Bench) -> Iterator[Result]:
    """cnn: the engine alone against the whole product with one open run page."""
    raw: dict[str, Any] = {}
    rows, costs = [], []
    for epochs in bench.plan.recorded_epochs:
        repeats = bench.plan.more_repeats if epochs == 1 else bench.plan.repeats
        sides = {
            "engine": partial(_engine_alone, bench, epochs),
            "product": partial(_watched_run, bench, epochs),
        }
        both = interleaved(repeats, sides)
        for engine, product in zip(both["engine"], both["product"], strict=True):
            check_same_work(loop_of(engine), loop_of(product))
        alone, whole = each(both["engine"], "loop_seconds"), each(both["product"], "loop_seconds")
        cost = statistics.median(whole) / statistics.median(alone) - 1
        costs.append(f"{percent(cost, 1)} at {count(epochs, 'epoch')}")
        saving = [statistics.median(loop_of(one)["save_seconds"]) for one in both["product"]]
        requests = statistics.median(one["num_requests"] for one in both["product"])
        rows.append(
            [
                str(epochs),
                str(repeats),
                spread(alone),
                spread(whole),
                percent(cost, 1),
                spread(saving),
                f"{requests:,.0f}",
            ]
        )
        raw[str(epochs)] = both
    fsync = fsync_seconds(bench.home / "runs")
    yield Result(
        "recording",
        "Cost of recording, CNN on MNIST",
        "; ".join(costs),
        "see the table",
        sentence="From the event `started` to `finished`: the engine alone in a fresh process, and a run on a server that "
        "indexes it and serves one open run page, which polls every second and loads its figures and pictures. Saving is "
        "the checkpoint and the predictions of an epoch, each synced to disk. Writing a file of 64 KiB, syncing it, "
        f"renaming it and syncing its folder takes {1000 * statistics.median(fsync):.1f} ms here "
        f"(median of {len(fsync)}).",
        head=[
            "epochs",
            "n",
            "engine, seconds",
            "product, seconds",
            "cost",
            "saving, seconds per epoch",
            "requests of the page",
        ],
        rows=rows,
        raw={**raw, "fsync": fsync},
    )


def _engine_alone(bench: Bench, epochs: int, seed: int) -> Measured:
    return bench.runoff([bench.recipe("cnn", seed=seed, epochs=epochs)])


def _watched_run(bench: Bench, epochs: int, seed: int) -> Measured:
    with serving(bench.home) as server:
        client = server.client
        finished(client, client.start_run(**bench.recipe("cnn", seed=_OTHER_SEED))["id"])
        run_id = client.start_run(**bench.recipe("cnn", seed=seed, epochs=epochs))["id"]
        with open_page(client.url, run_id) as page:
            finished(client, run_id)
    return {"loops": [work_of(bench.home, run_id)], "num_requests": page.num_requests}


def fsync_seconds(folder: Path, repeats: int = 20) -> list[float]:
    """Seconds of writing a small file as run folders are written: synced, renamed, the folder synced."""
    path, seconds = folder / "fsync-probe", []
    for _repeat in range(repeats):
        begin = time.perf_counter()
        write_bytes(path, bytes(1 << 16))
        seconds.append(time.perf_counter() - begin)
    path.unlink()
    return seconds
