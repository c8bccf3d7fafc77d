"""The page of one run in each of its states, its tabs by the address, and its buttons."""

from __future__ import annotations

import html
import re
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import text as sql

from app.routes.pages import run as run_page
from app.store.database import reading, writing
from app.store.images import Images
from app.store.tables import Run
from tests.app.page_answers import FakeExecutor, give_answers, joined
from trainer import measurements
from trainer.run_folder import RunFolder, write_json

Client = Any
LABELS = [0, 0, 1, 1, 2, 2]
ANSWERS = [0, 1, 1, 1, 2, 0]


@pytest.fixture(autouse=True)
def executor(site: Client, site_app: FastAPI) -> None:
    site_app.state.runoff.executor = FakeExecutor()


@pytest.fixture
def answered(site_app: FastAPI, add_run: Any) -> Run:
    run: Run = add_run("CNN seed 0", epochs=2, tags=["part-1"])
    give_answers(site_app, run, LABELS, ANSWERS, epochs=2)
    return run


def words_of(text: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())


def page(site: Client, run: Run, query: str = "") -> str:
    answer = site.get(f"/runs/{run.id}{query}")
    assert answer.status_code == 200, words_of(answer.text)
    assert "style=" not in answer.text
    assert "onclick" not in answer.text
    return str(answer.text)


def row(app: FastAPI, run_id: str) -> Run | None:
    with reading(app.state.runoff.engine) as session:
        return session.get(Run, run_id)


def test_a_finished_run(site: Client, answered: Run) -> None:
    words = words_of(page(site, answered))
    assert "CNN seed 0 Finished part-1" in words
    assert "Test accuracy 66.67 %" in words
    assert "chosen on the test images" in words
    assert "Test predictions 2 wrong" in words
    assert "Configuration" in words
    assert "learning_rate 0.01" in words
    assert f"/runs/new?from={answered.id}&amp;repeats=4&amp;seed=1" in page(site, answered)


def test_a_missing_run_is_named(site: Client) -> None:
    answer = site.get("/runs/zzzzzzzzzz")
    assert answer.status_code == 404
    assert "There is no run zzzzzzzzzz." in answer.text


def test_a_failed_run_says_why_and_what_to_do(site: Client, add_run: Any) -> None:
    error = {"error": "NonFiniteLoss", "message": "Loss became NaN.", "advice": "Lower the learning rate."}
    run = add_run("broken", status="failed", error=error)
    words = words_of(page(site, run))
    assert "Loss became NaN. Lower the learning rate." in words
    assert "Resume" in words
    assert "The run ended before its first epoch was complete." in words


def test_a_queued_run_says_its_place(site: Client, add_run: Any) -> None:
    first, second = add_run("a", status="queued"), add_run("b", status="queued")
    assert "First in the queue." in page(site, first)
    text = page(site, second)
    assert "Number 2 in the queue." in text
    assert 'data-live="true"' in text


def test_a_running_run_says_how_far_it_is(site: Client, add_run: Any) -> None:
    run = add_run(
        "runs",
        status="running",
        step=15,
        total_steps=20,
        steps_per_epoch=10,
        seconds_left=27.0,
        updated_at="2026-03-01T10:00:00.000Z",
        started_at="2026-03-01T10:00:00.000Z",
        epochs=2,
    )
    words = words_of(page(site, run))
    assert "epoch 2 of 2, step 15 of 20" in words
    assert "Cancel" in words
    starting = add_run("begins", status="running", step=0)
    assert "starting" in words_of(page(site, starting))
    loading = add_run("loads", status="running", phase={"what": "download", "done": 1, "total": 2, "unit": "bytes"})
    assert "downloading" in words_of(page(site, loading))


def test_nothing_new_is_304(site: Client, answered: Run) -> None:
    tag = site.get(f"/runs/{answered.id}").headers["HX-PTag"]
    again = site.get(f"/runs/{answered.id}", headers={"HX-PTag": tag})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", "2 of 2"),
        ("?show=right", "4 of 4"),
        ("?show=all", "6 of 6"),
        ("?show=all&label=1", "2 of 2"),
        ("?show=all&predicted=0", "2 of 2"),
        ("?confidence=0.99", "0 of 0"),
        ("?show=all&shown=3", "3 of 6"),
        ("?epoch=1", "2 of 2"),
    ],
)
def test_filters_of_the_wall(site: Client, answered: Run, query: str, expected: str) -> None:
    assert expected in words_of(page(site, answered, query))


def test_without_the_images_the_page_says_so(site: Client, answered: Run) -> None:
    assert "The test images of this run are not available" in page(site, answered)  # mnist is not cached in this test


def test_tiles_in_each_order(site: Client, answered: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_page, "images_of", lambda *_all: Images("mnist", "f" * 64, "test", 28, 28))

    def tiles(query: str) -> list[int]:
        return [int(number) for number in re.findall(r'id="tile-(\d+)"', page(site, answered, query))]

    assert tiles("") == [1, 5]
    assert tiles("?show=all&order=index") == [0, 1, 2, 3, 4, 5]
    assert tiles("?show=all") == [1, 5, 0, 2, 3, 4]
    text = joined(page(site, answered))
    assert f'src="/images/mnist/{"f" * 64}/test/1.png" width="56" height="56"' in text


def test_the_confusion_matrix_links_to_its_images(site: Client, answered: Run) -> None:
    text = page(site, answered, "?tab=matrix")
    assert "No cell selected" in text
    assert 'title="true zero, predicted one"' in text
    cell = re.search(r'href="([^"]*label=0&amp;predicted=1[^"]*)"', text)
    assert cell
    chosen = words_of(site.get(html.unescape(cell[1]).split("#")[0]).text)
    assert "zero predicted as one: 1 image" in chosen


def test_an_image_shows_its_probabilities(site: Client, answered: Run) -> None:
    text = page(site, answered, "?image=1")
    words = words_of(text)
    assert "Test image 1 true class zero" in words
    assert "wrong: one 90.0 % confidence" in words
    assert re.search(r'<meter value="0.90\d\d" max="1">', text)
    assert "zero true" in words
    assert 'rel="next"' in text
    assert 'rel="up"' in text
    assert 'id="detail"' not in page(site, answered, "?image=999")


def test_training_images_need_their_pictures(site: Client, answered: Run) -> None:
    assert "No pictures" in page(site, answered, "?tab=train")


def test_damaged_answers_are_said(site: Client, site_app: FastAPI, answered: Run) -> None:
    path = site_app.state.runoff.settings.runs / answered.id / "predictions" / "epoch-0002.safetensors"
    path.unlink()
    assert "There are no test predictions for epoch 2." in page(site, answered)


def test_figures_are_json(site: Client, answered: Run) -> None:
    figure = site.get(f"/runs/{answered.id}/figures/accuracy.json").json()
    assert figure["data"][0]["x"] == [1, 2]
    assert figure["data"][-1]["meta"] == {"color": "run-1", "index": 0}
    loss = site.get(f"/runs/{answered.id}/figures/loss.json").json()
    assert loss["data"][1]["x"] == [10, 20]
    assert loss["layout"]["xaxis"]["range"] == [0, 20]


# Buttons -------------------------------------------------------------------------------------------------------------


def test_rename_tag_and_note(site: Client, site_app: FastAPI, answered: Run) -> None:
    answer = site.post(f"/runs/{answered.id}/change", data={"name": " new ", "tags": "x, y ,", "notes": "a\r\nb"})
    assert (answer.status_code, answer.headers["Location"]) == (303, f"/runs/{answered.id}")
    changed = row(site_app, answered.id)
    assert changed
    assert (changed.name, changed.tags, changed.notes) == ("new", ["x", "y"], "a\nb")
    long = site.post(f"/runs/{answered.id}/change", data={"name": "x" * 121})
    assert long.status_code == 422
    assert "at most 120 characters" in long.text


def test_archive_and_restore(site: Client, site_app: FastAPI, answered: Run) -> None:
    site.post(f"/runs/{answered.id}/archive")
    assert (row(site_app, answered.id) or answered).archived
    assert "Archived" in page(site, answered)
    site.post(f"/runs/{answered.id}/unarchive")
    assert not (row(site_app, answered.id) or answered).archived


def test_cancel_resume_and_delete(site: Client, site_app: FastAPI, add_run: Any) -> None:
    run = add_run("waits", status="queued")
    for action, status in (("cancel", "cancelled"), ("resume", "queued")):
        answer = site.post(f"/runs/{run.id}/{action}")
        assert answer.headers["Location"] == f"/runs/{run.id}"
        found = row(site_app, run.id)
        assert found
        assert found.status == status
    assert site.post(f"/runs/{run.id}/resume").status_code == 409
    site.post(f"/runs/{run.id}/cancel")
    assert site.post(f"/runs/{run.id}/delete").headers["Location"] == "/runs"
    assert row(site_app, run.id) is None


def test_unknown_actions_are_refused(site: Client, answered: Run) -> None:
    assert site.post(f"/runs/{answered.id}/explode").status_code == 422


# Cost ----------------------------------------------------------------------------------------------------------------

ENVIRONMENT = {
    "device": "cpu",
    "device_name": "a CPU",
    "machine": "x86_64, a CPU, 2 cores",
    "torch": "2.14",
    "precision": "float32",
    "num_threads": 1,
    "convolution": "winograd",
}


def test_time_to_accuracy(site: Client, answered: Run) -> None:
    words = words_of(page(site, answered))
    assert "To Epoch Training time Images FLOPs 60 % 1 5.0 s 60,000 2 GFLOP" in words
    assert "50 %" not in words.split("Time to accuracy")[1].split("Speed")[0]  # passed by the same epoch


def test_an_accuracy_can_be_asked_for(site: Client, answered: Run) -> None:
    text = joined(page(site, answered, "?to=0.99&tab=matrix"))
    assert "99 % not reached" in words_of(text)
    assert 'value="99" size="4"' in text
    assert '<input type="hidden" name="tab" value="matrix"><label class="row tight" for="to">' in text
    assert '<input type="hidden" name="to" value="0.99">' in text.split('id="answers"')[1]
    assert "1 5.0 s" in words_of(page(site, answered, "?to=12.5")).split("12.5 %")[1]
    words = words_of(page(site, answered, "?to=200"))
    assert "The accuracy must be above 0 and at most 100 %. You typed 200." in words


def test_speed_of_an_old_run(site: Client, site_app: FastAPI, answered: Run) -> None:
    with writing(site_app.state.runoff.engine) as session:
        session.connection().execute(sql("UPDATE epoch SET flops = NULL"))
        session.commit()
    words = words_of(page(site, answered))
    assert "FLOPs per training image not recorded Achieved not recorded" in words
    assert "Share of the matrix-product rate not measured yet" in words


def test_speed_and_the_share_of_the_matrix_product(site: Client, site_app: FastAPI, answered: Run) -> None:
    home = site_app.state.runoff.settings.home
    write_json(home / "runs" / answered.id / "environment.json", ENVIRONMENT)
    before = site.get(f"/runs/{answered.id}")
    words = words_of(before.text)
    assert (
        "FLOPs per training image 33.3 kFLOP Achieved 400 MFLOP/s Share of the matrix-product rate not measured yet"
        in words
    )
    assert "Convolution Winograd's method" in words
    assert "precision auto: float32, as nothing was measured here yet." in words
    tag = {"HX-PTag": before.headers["HX-PTag"]}
    assert site.get(f"/runs/{answered.id}", headers=tag).status_code == 304
    measurements.record(home, "matmul", measurements.matmul_key(ENVIRONMENT), {"gflops": 0.25, "size": 1024})
    after = site.get(f"/runs/{answered.id}", headers=tag)
    assert after.status_code == 200  # a measurement is news
    assert "Share of the matrix-product rate 160 % of 250 MFLOP/s" in words_of(after.text)
    assert "Winograd convolution needs fewer multiplications" in words_of(after.text)


def test_the_table_of_epochs(site: Client, site_app: FastAPI, add_run: Any) -> None:
    run = add_run("long", epochs=60)
    give_answers(site_app, run, LABELS, ANSWERS, epochs=60)
    words = words_of(page(site, run)).split("Epochs the latest 50 of 60")[1]
    assert "Images/s Achieved 60 66.67 0.6000 0.01 5.00 1.00 – 12,000 400 MFLOP/s 59 66.67" in words
    assert " 11 66.67" in words
    assert " 10 66.67" not in words


def test_a_silent_run_offers_to_be_stopped(site: Any, add_run: Any, site_app: FastAPI) -> None:
    since = datetime.fromtimestamp(time.time() - 300, UTC).isoformat().replace("+00:00", "Z")
    run = add_run("still", "running", None, hanging_since=since)
    page = joined(site.get(f"/runs/{run.id}").text)
    assert "No sign of life for 5 min" in page
    assert f'action="/runs/{run.id}/stop"' in page
    ended: set[int] = set()

    def force_stop(_folder: RunFolder, attempt: int) -> bool:
        ended.add(attempt)
        return True

    site_app.state.runoff.executor.force_stop = force_stop
    assert site.post(f"/runs/{run.id}/stop").status_code == 303
    assert ended == {run.attempt}
    assert site.get(f"/api/v1/runs/{run.id}").json()["cancel_requested"] is True


def test_only_a_running_run_can_be_stopped(site: Any, add_run: Any) -> None:
    run = add_run("done")
    assert site.post(f"/runs/{run.id}/stop").status_code == 409
    assert site.get(f"/api/v1/runs/{run.id}").json()["status"] == "finished"
