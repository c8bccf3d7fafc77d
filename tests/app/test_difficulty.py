"""Difficulty over runs: forgetting, hard and disputed images and the vote, against loops over plain lists; page and API."""

from __future__ import annotations

import html
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from numpy.typing import NDArray
from safetensors.numpy import save_file

from app.compare import difficulty
from app.compare.difficulty import CountedRun, Difficulty, Forgetting
from app.store.database import writing
from app.store.tables import Run
from tests.app.page_answers import FakeExecutor, give_answers
from trainer.run_folder import RunFolder

Client = Any
RANDOM = np.random.default_rng(4)
LABELS = [0, 1, 2] * 20


def answers_of(history: list[list[int]]) -> list[NDArray[np.uint16]]:
    return [np.array(row, np.uint16) for row in history]


def difficulty_of(labels: list[int], histories: list[list[list[int]]]) -> Difficulty:
    """From the answers [epoch][image] of each run."""
    true = np.array(labels, np.int64)
    runs = [
        CountedRun(str(i), f"run {i}", len(h), answers_of(h)[-1], told(true, answers_of(h)))
        for i, h in enumerate(histories)
    ]
    return Difficulty(true, ["zero", "one", "two"], runs)


def told(labels: NDArray[np.int64], history: list[NDArray[np.uint16]]) -> Forgetting:
    found = difficulty.forgetting([predicted == labels for predicted in history])
    assert found is not None
    return found


# Forgetting ----------------------------------------------------------------------------------------------------------


def test_forgetting_is_right_and_then_wrong() -> None:
    labels = np.array([0, 0, 0, 0, 0])
    history = [[0, 1, 0, 1, 1], [1, 0, 0, 1, 1], [0, 1, 0, 0, 1], [1, 0, 0, 0, 1]]
    found = told(labels, answers_of(history))
    assert found.events.tolist() == [2, 1, 0, 0, 0]
    assert found.ever_right.tolist() == [True, True, True, True, False]
    assert found.num_epochs == 4


def test_forgetting_of_one_epoch_and_of_none() -> None:
    assert told(np.array([0, 1]), answers_of([[0, 0]])).events.tolist() == [0, 0]
    assert difficulty.forgetting([]) is None


@pytest.mark.parametrize("at", [1, 2, 5, 8])
def test_parts_of_a_history_add_up_to_the_whole(at: int) -> None:
    labels = RANDOM.integers(0, 3, 40)
    history = answers_of(RANDOM.integers(0, 3, (9, 40)).tolist())
    whole = told(labels, history)
    found = difficulty.joined(told(labels, history[:at]), told(labels, history[at:]))
    assert found is not None
    assert found.num_epochs == 9
    for name in ("events", "ever_right", "first", "last"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))
    assert difficulty.joined(None, whole) is difficulty.joined(whole, None) is whole


# Against loops -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_runs", [1, 2, 3, 4, 7])
def test_counts_equal_those_of_plain_loops(num_runs: int) -> None:
    labels = RANDOM.integers(0, 3, 50).tolist()
    histories = RANDOM.integers(0, 3, (num_runs, 5, 50)).tolist()
    found = difficulty_of(labels, histories)
    last = [history[-1] for history in histories]
    for i, label in enumerate(labels):
        right = sum(answers[i] == label for answers in last)
        assert found.num_right[i] == right
        assert found.is_wrong_in_all[i] == (right == 0)
        assert found.is_disputed[i] == (num_runs > 1 and abs(2 * right - num_runs) <= num_runs % 2)
        named = Counter(answers[i] for answers in last)
        assert named[found.vote[i]] == max(named.values()) == found.num_agreeing[i]
        events = sum(h[e][i] == label != h[e + 1][i] for h in histories for e in range(4))
        assert found.forgotten[i] == pytest.approx(events / num_runs)
        assert found.never_right[i] == all(row[i] != label for h in histories for row in h)


def test_the_hardest_come_first() -> None:
    labels = [0] * 5
    histories = [[[1, 1, 2, 0, 1]], [[1, 2, 2, 1, 1]], [[2, 2, 2, 1, 1]]]
    found = difficulty_of(labels, histories)
    assert found.images("wrong") == [2, 4, 0, 1]  # where all agree on one wrong class, then ties by index
    assert found.images("disputed") == [3]
    assert found.images("wrong", label=1) == []
    assert found.images("forgotten") == []


def test_the_vote_beats_runs_that_err_apart() -> None:
    labels = [0] * 9
    last = [[0] * 6 + [1] * 3, [0] * 3 + [1] * 3 + [0] * 3, [1] * 3 + [0] * 6]
    found = difficulty_of(labels, [[answers] for answers in last])
    assert found.accuracies == pytest.approx([2 / 3] * 3)
    assert found.vote_correct.all()
    difference, (low, high) = found.vote_against_best()
    assert difference == pytest.approx(1 / 3)
    assert low < difference < high
    assert found.best == 0


def test_classes_add_up_and_the_hardest_is_first() -> None:
    labels = RANDOM.integers(0, 3, 60).tolist()
    histories = RANDOM.integers(0, 3, (4, 3, 60)).tolist()
    found = difficulty_of(labels, histories)
    rows = difficulty.by_class(found)
    assert sum(row.num_images for row in rows) == 60
    assert sum(row.num_wrong_in_all for row in rows) == int(found.is_wrong_in_all.sum())
    assert sum(row.num_disputed for row in rows) == int(found.is_disputed.sum())
    assert sum(row.mean_accuracy * row.num_images for row in rows) / 60 == pytest.approx(found.correct.mean())
    assert [row.mean_accuracy for row in rows] == sorted(row.mean_accuracy for row in rows)
    assert {row.name for row in rows} == {"zero", "one", "two"}


# API and page --------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def executor(site: Client, site_app: FastAPI) -> None:
    site_app.state.runoff.executor = FakeExecutor()


@pytest.fixture
def make(site_app: FastAPI, add_run: Any) -> Any:
    """A finished run with these answers [epoch][image]."""

    def run(name: str, history: list[list[int]], **values: Any) -> Run:
        row: Run = add_run(name, **values)
        give_answers(site_app, row, LABELS, history[-1], epochs=len(history))
        folder = RunFolder(site_app.state.runoff.settings.runs / row.id)
        for epoch, answers in enumerate(history, start=1):
            tensors: dict[str, Any] = {
                "predicted": np.array(answers, np.uint16),
                "confidence": np.full(len(LABELS), 0.9, np.float32),
            }
            save_file(tensors, folder.predictions_path(epoch))
        return row

    return run


HISTORIES = RANDOM.integers(0, 3, (3, 4, len(LABELS))).tolist()


@pytest.fixture
def three(make: Any) -> list[Run]:
    return [make(f"try, learning_rate {i}, seed 0", history) for i, history in enumerate(HISTORIES)]


def asked(*runs: Run, **more: Any) -> list[tuple[str, Any]]:
    return [*(("run", run.id) for run in runs), *more.items()]


def test_the_api_tells_the_same(site: Client, three: list[Run]) -> None:
    body = site.get("/api/v1/difficulty", params=asked(*three)).json()
    found = difficulty_of(LABELS, HISTORIES)
    assert [run["id"] for run in body["runs"]] == [run.id for run in three]
    assert [run["num_epochs"] for run in body["runs"]] == [4, 4, 4]
    assert [run["accuracy"] for run in body["runs"]] == pytest.approx(found.accuracies)
    assert body["num_images"] == 60
    assert body["num_wrong_in_all"] == len(body["wrong_in_all"]) == int(found.is_wrong_in_all.sum())
    assert body["num_right_in_all"] == int((found.num_right == 3).sum())
    assert body["num_never_right"] == int(found.never_right.sum())
    assert [image["index"] for image in body["disputed"]] == found.images("disputed")
    assert [image["forgotten"] for image in body["forgotten"]] == pytest.approx(
        [found.forgotten[i] for i in found.images("forgotten")]
    )
    assert body["vote"]["num_correct"] == int(found.vote_correct.sum())
    low, high = body["vote"]["interval"]
    assert low < body["vote"]["accuracy"] < high
    assert body["best_run"] == three[found.best].id
    assert body["left_out"] == []
    short = site.get("/api/v1/difficulty", params=asked(*three, limit=2)).json()
    assert len(short["forgotten"]) == 2
    assert short["num_forgotten"] == body["num_forgotten"]


def test_an_earlier_epoch_forgets_less(site: Client, three: list[Run]) -> None:
    body = site.get("/api/v1/difficulty", params=asked(*three, at=1)).json()
    assert {run["epoch"] for run in body["runs"]} == {1}
    assert body["num_forgotten"] == 0
    assert site.get("/api/v1/difficulty", params=asked(*three, at="x")).status_code == 422


def test_an_epoch_whose_answers_were_removed_is_passed_over(site: Client, site_app: FastAPI, three: list[Run]) -> None:
    RunFolder(site_app.state.runoff.settings.runs / three[0].id).predictions_path(2).unlink()
    body = site.get("/api/v1/difficulty", params=asked(*three)).json()
    assert [run["num_epochs"] for run in body["runs"]] == [3, 4, 4]
    shortened = [[HISTORIES[0][0], *HISTORIES[0][2:]], *HISTORIES[1:]]
    assert body["num_forgotten"] == len(difficulty_of(LABELS, shortened).images("forgotten"))


def test_answers_removed_on_the_way_are_a_reason_and_may_come_back(
    site: Client, site_app: FastAPI, three: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(site_app.state.runoff.settings.runs / three[1].id)
    loaded = difficulty._stored

    def removed_behind(state: Any, run: Run, at: str) -> Any:
        found = loaded(state, run, at)
        if run.id == three[1].id:
            folder.predictions.rename(folder.path / "elsewhere")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(difficulty, "_stored", removed_behind)
        found = site.get("/api/v1/difficulty", params=asked(*three))
    assert found.status_code == 200
    assert [left["reason"] for left in found.json()["left_out"]] == ["Its test predictions were removed."]
    (folder.path / "elsewhere").rename(folder.predictions)
    assert site.get("/api/v1/difficulty", params=asked(*three)).json()["left_out"] == []


def test_a_long_run_is_counted_in_blocks(site: Client, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(difficulty, "_BLOCK", 3)
    history = RANDOM.integers(0, 3, (8, len(LABELS))).tolist()
    run = make("long", history)
    for epochs in (3, 7, 8):
        body = site.get("/api/v1/difficulty", params=asked(run, at=epochs, limit=1000)).json()
        found = difficulty_of(LABELS, [history[:epochs]])
        assert body["runs"][0]["num_epochs"] == epochs
        assert {image["index"]: image["forgotten"] for image in body["forgotten"]} == {
            i: found.forgotten[i] for i in found.images("forgotten")
        }


def test_who_can_t_be_counted_is_left_out_with_the_reason(
    site: Client, site_app: FastAPI, three: list[Run], add_run: Any
) -> None:
    waiting = add_run("waiting", status="queued")
    with writing(site_app.state.runoff.engine) as session:
        row = session.get(Run, three[2].id)
        assert row is not None
        row.test_fingerprint = "0" * 64
        session.add(row)
        session.commit()
    body = site.get("/api/v1/difficulty", params=asked(waiting, *three)).json()
    assert [run["id"] for run in body["runs"]] == [three[0].id, three[1].id]
    assert {run["id"]: run["reason"] for run in body["left_out"]} == {
        waiting.id: "It has no finished epoch yet.",
        three[2].id: "It was tested on other images.",
    }
    words = words_of(site.get("/difficulty", params=asked(waiting, *three)).text)
    assert "2 runs are left out" in words
    assert "waiting : It has no finished epoch yet." in words


def test_questions_without_an_answer(site: Client, add_run: Any) -> None:
    waiting = add_run("waiting", status="queued")
    answer = site.get("/api/v1/difficulty", params=asked(waiting))
    assert (answer.status_code, answer.json()["detail"]) == (
        409,
        "None of these runs has stored predictions yet: It has no finished epoch yet.",
    )
    assert site.get("/api/v1/difficulty").status_code == 422
    assert site.get("/api/v1/difficulty?run=nothing").status_code == 404
    assert site.get("/difficulty?run=nothing").status_code == 404
    too_many = [("run", f"r{i}") for i in range(51)]
    assert site.get("/api/v1/difficulty", params=too_many).status_code == 422
    assert site.get("/difficulty", params=too_many).status_code == 422
    assert "No predictions yet" in words_of(site.get("/difficulty", params=asked(waiting)).text)
    assert "Which runs?" in words_of(site.get("/difficulty").text)


def words_of(text: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())


def page(site: Client, *runs: Run, **query: Any) -> str:
    answer = site.get("/difficulty", params=asked(*runs, **query))
    assert answer.status_code == 200, words_of(answer.text)
    assert "style=" not in answer.text
    return str(answer.text)


def test_the_page(site: Client, three: list[Run]) -> None:
    found = difficulty_of(LABELS, HISTORIES)
    text = page(site, *three)
    words = words_of(text)
    assert "Difficulty over 3 runs 60 test images" in words
    assert f"Wrong in all runs {int(found.is_wrong_in_all.sum())} probably mislabelled or hard" in words
    assert f"Majority vote {100 * found.vote_correct.mean():.2f}" in words
    assert f"Mean of the runs {100 * found.correct.mean():.2f}" in words
    assert "too close to call" in words
    assert f"Disputed {len(found.images('disputed'))} Forgotten {len(found.images('forgotten'))}" in words
    assert "counted over 4 epochs" in words_of(page(site, *three, side="forgotten"))
    by_class = words_of(page(site, *three, label=1))
    assert f"Disputed {len(found.images('disputed', 1))} Forgotten {len(found.images('forgotten', 1))}" in by_class


def test_an_opened_image_says_who_took_it_for_what(site: Client, three: list[Run]) -> None:
    found = difficulty_of(LABELS, HISTORIES)
    index = found.images("forgotten")[0]
    text = page(site, *three, side="forgotten", image=index)
    detail = words_of(text[text.index('id="detail"') :].split("</section>")[0])
    assert f"Test image {index} true class {['zero', 'one', 'two'][LABELS[index]]}" in detail
    for answer, count in Counter(int(history[-1][index]) for history in HISTORIES).items():
        kind = "right" if answer == LABELS[index] else "wrong"
        assert f"{kind}: {['zero', 'one', 'two'][answer]} {count} of 3 runs" in detail
    assert "learning_rate 0" in detail
    assert "try, learning_rate" not in detail  # what all names share is left out
    assert 'id="detail"' not in page(site, *three, image=10_000)


def test_nothing_new_is_nothing_sent(site: Client, three: list[Run]) -> None:
    first = site.get("/difficulty", params=asked(*three))
    again = site.get("/difficulty", params=asked(*three), headers={"HX-PTag": first.headers["HX-PTag"]})
    assert again.status_code == 304


def test_the_comparison_leads_here(site: Client, three: list[Run]) -> None:
    text = html.unescape(site.get("/compare", params=asked(*three)).text)
    assert f'href="/difficulty?run={three[0].id}&run={three[1].id}&run={three[2].id}"' in text
