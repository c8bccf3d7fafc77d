"""The routes about runs and sweeps: shapes, paging, files, events, answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from app import statistics
from tests.app.run_folders import STEPS, epoch, finish, new_run, say, started
from trainer.config import MODELS
from trainer.datasets.facts import KNOWN
from trainer.events import Step
from trainer.run_folder import RunFolder

BASE = {"dataset": "digits", "model": "fc"}
FIELDS_PROMISED = [
    "id",
    "name",
    "status",
    "config",
    "config_hash",
    "group",
    "sweep",
    "tags",
    "notes",
    "archived",
    "num_parameters",
    "device",
    "epochs_done",
    "created_at",
    "started_at",
    "finished_at",
    "train_loss",
    "train_accuracy",
    "test_loss",
    "test_accuracy",
    "test_accuracy_interval",
    "best_epoch",
    "images_per_second",
    "attempt",
    "cancel_requested",
    "error",
    "warnings",
]


@pytest.fixture
def done(api: TestClient, site_app: FastAPI) -> RunFolder:
    """A finished run of three epochs."""
    folder = finish(new_run(site_app.state.runoff.settings.runs))
    site_app.state.runoff.indexer.tick()
    return folder


def problem(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert set(body) == {"type", "title", "status", "detail", "errors"}
    return body


def test_starting_a_run(api: TestClient) -> None:
    answer = api.post(
        "/api/v1/runs", json={**BASE, "optimizer": "adam", "momentum": 0.9, "name": "mine", "tags": ["t"]}
    )
    run = answer.json()
    assert answer.status_code == 201
    assert answer.headers["location"] == f"/api/v1/runs/{run['id']}"
    assert set(FIELDS_PROMISED) <= set(run)
    assert (run["status"], run["name"], run["tags"], run["config"]["momentum"]) == ("queued", "mine", ["t"], None)
    assert run["warnings"] == ["momentum does not apply when optimizer is adam, so it is ignored."]
    assert api.get(answer.headers["location"]).json() == run


def test_starting_from_a_preset(api: TestClient) -> None:
    run = api.post("/api/v1/runs", json={"preset": "mnist-cnn", "dataset": "digits", "epochs": 4}).json()
    assert (run["model"], run["dataset"], run["epochs"]) == ("cnn", "digits", 4)


def test_refusals_name_the_field(api: TestClient) -> None:
    body = problem(api.post("/api/v1/runs", json={"dataset": "digits", "model": "fc", "epochs": 0}), 422)
    assert body["errors"] == [{"field": "epochs", "message": "Must be at least 1. You typed 0."}]
    assert "Known" in problem(api.post("/api/v1/runs", json={**BASE, "dataset": "nope"}), 422)["detail"] or True
    assert problem(api.post("/api/v1/runs", content=b"{"), 422)["errors"][0]["field"] == "body"
    problem(api.get("/api/v1/runs/nothing"), 404)
    problem(api.put("/api/v1/runs"), 405)
    problem(api.get("/api/v1/nothing"), 404)


def test_listing_filters_sorts_and_pages(api: TestClient) -> None:
    for number in range(5):
        tags = ["even"] if number % 2 == 0 else []
        api.post("/api/v1/runs", json={**BASE, "name": f"run {number}", "seed": number, "tags": tags})
    api.post("/api/v1/runs", json={"dataset": "mnist", "model": "cnn", "name": "50 % off_x"})

    def names(**query: Any) -> list[str]:
        return [run["name"] for run in api.get("/api/v1/runs", params=query).json()["runs"]]

    assert names(sort="name", limit=2, offset=1) == ["run 0", "run 1"]
    assert names(tag="even", sort="-name") == ["run 4", "run 2", "run 0"]
    assert names(model="cnn") == names(dataset="mnist") == names(q="off_x") == names(q="50 %") == ["50 % off_x"]
    assert names(q="seed=3") == ["run 3"]
    assert names(q="permute_pixels=false", limit=1000, sort="name")[0] == "50 % off_x"
    assert names(status="running") == []
    assert api.get("/api/v1/runs", params={"limit": 1}).json()["total"] == 6


def test_searching_by_expression(api: TestClient) -> None:
    for number in range(3):
        tags = ["even"] if number % 2 == 0 else []
        api.post("/api/v1/runs", json={**BASE, "name": f"run {number}", "seed": number, "tags": tags})
    found = api.get("/api/v1/runs", params={"q": "seed>=1 and (tag:even or name~'run 1')", "sort": "-seed"}).json()
    assert [run["seed"] for run in found["runs"]] == [2, 1]
    assert found["total"] == 2
    body = problem(api.get("/api/v1/runs", params={"q": "seed >= 1 and sed=2"}), 422)
    message = "Character 15: There is no field sed. Did you mean seed?"
    assert body["errors"] == [{"field": "q", "message": message}]


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "offset=-1", "sort=nonsense", "status=nonsense", "limit=x"])
def test_wrong_paging_is_refused(api: TestClient, query: str) -> None:
    body = problem(api.get(f"/api/v1/runs?{query}"), 422)
    assert body["errors"][0]["field"] == query.split("=")[0]


def test_changing_labels(api: TestClient, done: RunFolder) -> None:
    path = f"/api/v1/runs/{done.id}"
    assert api.patch(path, json={"name": "new", "archived": True, "tags": ["x", "x"]}).json()["tags"] == ["x"]
    assert api.get(path).json()["archived"] is True
    assert api.get("/api/v1/runs", params={"archived": False}).json()["total"] == 0
    assert problem(api.patch(path, json={"epochs": 5}), 422)["errors"][0]["field"] == "epochs"
    assert problem(api.patch(path, json={"name": "x" * 121}), 422)["errors"][0]["field"] == "name"


def test_cancel_resume_delete(api: TestClient, done: RunFolder) -> None:
    run_id = api.post("/api/v1/runs", json=BASE).json()["id"]
    path = f"/api/v1/runs/{run_id}"
    assert "only failed and cancelled" in problem(api.post(f"{path}/resume"), 409)["detail"]
    cancelled = api.post(f"{path}/cancel")
    assert (cancelled.status_code, cancelled.json()["status"]) == (202, "cancelled")
    problem(api.post(f"{path}/cancel"), 409)
    assert api.post(f"{path}/resume").json()["status"] == "queued"
    assert api.delete(path).status_code == 204
    problem(api.delete(path), 404)
    problem(api.post(f"/api/v1/runs/{done.id}/resume"), 409)


def test_a_running_run_is_asked_to_stop_and_not_deleted(api: TestClient, site_app: FastAPI) -> None:
    folder = new_run(site_app.state.runoff.settings.runs)
    say(folder, [started(), epoch(1)])
    site_app.state.runoff.indexer.tick()
    path = f"/api/v1/runs/{folder.id}"
    problem(api.delete(path), 409)
    answer = api.post(f"{path}/cancel").json()
    assert (answer["status"], answer["cancel_requested"]) == ("running", True)
    assert folder.stop_requested()
    progress = api.get(path).json()["progress"]
    assert (progress["step"], progress["epoch"], progress["fraction"]) == (10, 2, pytest.approx(1 / 3))


def test_epochs_add_up(api: TestClient, done: RunFolder) -> None:
    epochs = api.get(f"/api/v1/runs/{done.id}/epochs").json()["epochs"]
    assert [(e["flops"], e["gflops_per_second"]) for e in epochs] == [(4e9, 2.0)] * 3
    sums = [(e["train_seconds"], e["images"], e["total_flops"]) for e in epochs]
    assert sums == [(2.0, 100, 4e9), (4.0, 200, 8e9), (6.0, 300, 12e9)]
    run = api.get(f"/api/v1/runs/{done.id}").json()
    assert (run["train_seconds"], run["images"], run["flops"]) == sums[-1]


def test_cost_of_an_accuracy(api: TestClient, done: RunFolder) -> None:
    path = f"/api/v1/runs/{done.id}/to_accuracy"
    assert api.get(path, params={"accuracy": 0.7}).json() == {
        "accuracy": 0.7,
        "epoch": 2,
        "seconds": 4.0,
        "images": 200,
        "flops": 8e9,
        "test_accuracy": 0.75,
    }
    never = api.get(path, params={"accuracy": 0.9}).json()
    assert never.pop("accuracy") == 0.9
    assert len(never) == 5
    assert set(never.values()) == {None}
    assert problem(api.get("/api/v1/runs/zzzzzzzzzz/to_accuracy", params={"accuracy": 0.5}), 404)


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("90", "Must be at most 1. You typed 90."),
        ("0", "Must be more than 0. You typed 0."),
        ("high", "Must be a number. You typed high."),
        (None, "Required, but not given."),
    ],
)
def test_an_accuracy_is_a_fraction(api: TestClient, done: RunFolder, typed: str | None, sentence: str) -> None:
    answer = api.get(f"/api/v1/runs/{done.id}/to_accuracy", params={"accuracy": typed} if typed else {})
    assert problem(answer, 422)["errors"] == [{"field": "accuracy", "message": sentence}]
    assert api.get(f"/api/v1/runs/{done.id}/to_accuracy", params={"accuracy": "nan"}).status_code == 422


def test_the_comparison_has_the_cost_of_an_accuracy(api: TestClient, site_app: FastAPI, done: RunFolder) -> None:
    other = finish(new_run(site_app.state.runoff.settings.runs, seed=1), epochs=2)
    site_app.state.runoff.indexer.tick()
    asked = {"run": [done.id, other.id]}
    costs = api.get("/api/v1/compare", params=asked).json()["to_accuracy"]
    assert [(c["accuracy"], c["epoch"]) for c in costs] == [(0.75, 2), (0.75, 2)]
    costs = api.get("/api/v1/compare", params={**asked, "accuracy": 0.8}).json()["to_accuracy"]
    assert [(c["seconds"], c["flops"]) for c in costs] == [(6.0, 12e9), (None, None)]


def test_epochs(api: TestClient, done: RunFolder) -> None:
    epochs = api.get(f"/api/v1/runs/{done.id}/epochs").json()["epochs"]
    assert [(e["epoch"], e["test_correct"], e["test_total"]) for e in epochs] == [(1, 5, 8), (2, 6, 8), (3, 7, 8)]
    run = api.get(f"/api/v1/runs/{done.id}").json()
    assert (run["test_accuracy"], run["best_epoch"], run["best_is_optimistic"]) == (7 / 8, 3, True)
    low, high = run["test_accuracy_interval"]
    assert 0 < low < 7 / 8 < high < 1


def test_steps_are_thinned_with_extremes_kept(api: TestClient, site_app: FastAPI) -> None:
    folder = new_run(site_app.state.runoff.settings.runs, epochs=1000)
    losses = [[float(100 * number + 1), 1.0 + (number % 7) / 10] for number in range(2000)]
    losses[700][1], losses[1300][1] = 99.0, -5.0
    say(folder, [started(epochs=1000), Step(1, 5, losses)])
    site_app.state.runoff.indexer.tick()
    path = f"/api/v1/runs/{folder.id}/steps"
    everything = api.get(path, params={"max_points": 5000}).json()
    assert len(everything["steps"]) == 2000
    few = api.get(path, params={"max_points": 40}).json()
    assert len(few["steps"]) <= 40
    assert {99.0, -5.0} <= set(few["losses"])
    assert (few["steps"][0], few["steps"][-1]) == (1, 199_901)
    assert few["steps"] == sorted(few["steps"])
    problem(api.get(path, params={"max_points": 1}), 422)


def test_a_later_attempt_replaces_steps(api: TestClient, site_app: FastAPI) -> None:
    folder = new_run(site_app.state.runoff.settings.runs)
    say(folder, [started(), Step(1, 1, [[1, 2.0]]), epoch(1), Step(2, 11, [[11, 9.0]])])
    say(folder, [started(first_epoch=2), Step(2, STEPS + 1, [[11, 1.0]])], attempt=2)
    site_app.state.runoff.indexer.tick()
    assert api.get(f"/api/v1/runs/{folder.id}/steps").json() == {"steps": [1, 11], "losses": [2.0, 1.0]}


def test_answers_filter_sort_and_page(api: TestClient, done: RunFolder) -> None:
    path = f"/api/v1/runs/{done.id}/predictions"

    def answers(**query: Any) -> Any:
        return api.get(path, params=query).json()

    assert answers()["total"] == 8
    wrong = answers(correct=False)
    assert [item["index"] for item in wrong["items"]] == [7]
    assert set(wrong["items"][0]) >= {"index", "label", "predicted", "confidence"}
    assert answers(epoch=1, correct=False)["total"] == 3
    assert [item["index"] for item in answers(label=0)["items"]] == [0, 3, 6]
    assert [item["index"] for item in answers(sort="-confidence", limit=2)["items"]] == [7, 6]
    assert [item["index"] for item in answers(sort="confidence", limit=1, offset=1)["items"]] == [1]
    assert answers(limit=0)["status"] == 422
    problem(api.get(path, params={"epoch": 9}), 404)
    problem(api.get(path, params={"sort": "x"}), 422)


def test_a_run_without_an_epoch_has_no_answers(api: TestClient) -> None:
    run_id = api.post("/api/v1/runs", json=BASE).json()["id"]
    assert "no finished epoch" in problem(api.get(f"/api/v1/runs/{run_id}/predictions"), 404)["detail"]
    assert api.get(f"/api/v1/runs/{run_id}/epochs").json() == {"epochs": []}
    assert api.get(f"/api/v1/runs/{run_id}/steps").json() == {"steps": [], "losses": []}


def test_files(api: TestClient, done: RunFolder) -> None:
    path = f"/api/v1/runs/{done.id}/files"
    names = [file["name"] for file in api.get(path).json()["files"]]
    assert {
        "config.json",
        "events.jsonl",
        "epochs.csv",
        "log.txt",
        "predictions-last.safetensors",
        "labels.npy",
    } <= set(names)
    for name in names:
        assert api.get(f"{path}/{name}").status_code == 200
    csv = api.get(f"{path}/epochs.csv").text.splitlines()
    assert (len(csv), csv[0].split(",")[0]) == (4, "epoch")
    assert api.get(f"{path}/events.jsonl").content == done.events_path.read_bytes()
    for name in ("lock", "run.json.tmp", "..%2f..%2frunoff.sqlite3", "%2e%2e", "checkpoint-best.safetensors"):
        assert api.get(f"{path}/{name}").status_code == 404


def test_events_stream_and_resume(api: TestClient, done: RunFolder) -> None:
    path = f"/api/v1/runs/{done.id}/events"
    answer = api.get(path)
    assert answer.headers["content-type"].startswith("text/event-stream")
    ids = [int(line.removeprefix("id:")) for line in answer.text.splitlines() if line.startswith("id:")]
    assert ids == [*range(1, 9)]
    assert "event: finished" in answer.text
    again = api.get(path, headers={"Last-Event-ID": "6"})
    assert [line for line in again.text.splitlines() if line.startswith("id:")] == ["id: 7", "id: 8"]
    problem(api.get("/api/v1/runs/nothing/events"), 404)


def test_sweeps(api: TestClient) -> None:
    sweep = {"base": BASE, "grid": {"epochs": [1, 2]}, "repeats": 2, "name": "s", "tags": ["t"]}
    answer = api.post("/api/v1/sweeps", json=sweep)
    assert answer.status_code == 201
    assert len(answer.json()["runs"]) == 4
    path = answer.headers["location"]
    assert {run["id"] for run in api.get(path).json()["runs"]} == {run["id"] for run in answer.json()["runs"]}
    assert api.get("/api/v1/runs", params={"sweep": answer.json()["id"]}).json()["total"] == 4
    cancelled = api.post(f"{path}/cancel")
    assert (cancelled.status_code, {run["status"] for run in cancelled.json()["runs"]}) == (202, {"cancelled"})
    problem(api.get("/api/v1/sweeps/nothing"), 404)
    body = problem(api.post("/api/v1/sweeps", json={"base": BASE, "grid": {"learning_rate": [1, 2, -1]}}), 422)
    assert body["errors"][0]["field"] == "grid.learning_rate[2]"
    assert (
        problem(api.post("/api/v1/sweeps", json={"base": BASE, "repeats": 1001}), 422)["errors"][0]["field"]
        == "repeats"
    )


def test_compare(api: TestClient, site_app: FastAPI, done: RunFolder) -> None:
    other = finish(new_run(site_app.state.runoff.settings.runs, learning_rate=0.1))
    site_app.state.runoff.indexer.tick()
    body = api.get("/api/v1/compare", params={"run": [done.id, other.id]}).json()
    assert {"runs", "config_differences", "curves", "pairs", "recipes", "groups"} <= set(body)
    [pair] = body["pairs"]
    assert (pair["a"], pair["b"], pair["num_images"], pair["both_correct"], pair["difference"]) == (
        done.id,
        other.id,
        8,
        7,
        0,
    )
    assert [difference["field"] for difference in body["config_differences"]] == ["learning_rate"]
    assert len(body["curves"][done.id]) == 3
    problem(api.get("/api/v1/compare", params={"run": [done.id, "nothing"]}), 404)
    assert problem(api.get("/api/v1/compare"), 422)["errors"][0]["field"] == "run"
    assert problem(api.get("/api/v1/compare", params={"run": done.id, "at": "x"}), 422)["errors"][0]["field"] == "at"


def test_compare_by_class(api: TestClient, site_app: FastAPI, done: RunFolder) -> None:
    """Counted anew from the answers that the API gives."""
    other = finish(new_run(site_app.state.runoff.settings.runs, learning_rate=0.1))
    unfinished = new_run(site_app.state.runoff.settings.runs, learning_rate=0.2)
    site_app.state.runoff.indexer.tick()
    asked = {"run": [done.id, other.id, unfinished.id]}
    assert api.get("/api/v1/compare", params=asked).json()["by_class"] == []
    body = api.get("/api/v1/compare", params={**asked, "classes": True}).json()
    [found] = body["by_class"]  # the pairs with the run without answers can't be compared
    assert (found["a"], found["b"]) == (done.id, other.id)
    items = [api.get(f"/api/v1/runs/{run}/predictions").json()["items"] for run in (done.id, other.id)]
    labels = sorted({item["label"] for item in items[0]})
    assert [one["label"] for one in found["classes"]] == labels
    assert found["level"] == 1 - 0.05 / len(labels)
    for one in found["classes"]:
        a, b = (np.array([i["predicted"] == i["label"] for i in run if i["label"] == one["label"]]) for run in items)
        assert (one["num_images"], one["accuracy_a"], one["accuracy_b"]) == (len(a), a.mean(), b.mean())
        assert one["difference"] == a.mean() - b.mean()
        low, high = statistics.paired_interval((a & ~b).sum(), (b & ~a).sum(), len(a), found["level"])
        assert one["interval"] == [low, high]


def test_choices(api: TestClient) -> None:
    assert [model["name"] for model in api.get("/api/v1/models").json()] == [*MODELS]
    assert {"mnist-fc", "cifar10-vgg16"} <= {preset["name"] for preset in api.get("/api/v1/presets").json()}
    assert api.get("/api/v1/devices").json()[0]["name"] == "cpu"
    described = api.post("/api/v1/describe", json={"dataset": "mnist", "model": "fc"}).json()
    assert (described["num_parameters"], described["warnings"]) == (6442, [])
    assert api.get("/api/v1/runs").json()["total"] == 0


def test_datasets(api: TestClient) -> None:
    names = [one["name"] for one in api.get("/api/v1/datasets").json()["datasets"]]
    assert names == [*KNOWN]
    problem(api.get("/api/v1/datasets/nothing"), 404)
    problem(api.delete("/api/v1/datasets/nothing"), 404)
    problem(api.delete("/api/v1/datasets/digits"), 409)
    refused = problem(api.post("/api/v1/datasets", files={"file": ("a.zip", b"")}, data={"name": "Not Good"}), 422)
    assert refused["errors"][0]["field"] == "name"
    problem(api.post("/api/v1/datasets", files={"file": ("a.zip", b"")}, data={"name": "mnist"}), 409)
    assert problem(api.post("/api/v1/datasets", data={"name": "x"}), 422)["errors"][0]["field"] == "file"
