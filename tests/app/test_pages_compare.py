"""The compare page: verdict, what it rests on, what the address chooses, and all that can't be compared."""

from __future__ import annotations

import html
import re
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from sqlmodel import select

from app.database import reading, writing
from app.predictions import Predictions
from app.routes.pages import compare_parts as parts
from app.routes.pages.run import heat_of
from app.tables import Run
from tests.app.page_answers import FakeExecutor, give_answers
from trainer.config import config_hash, group_hash, parse_config

Client = Any
LABELS = [0, 1, 2] * 100
RIGHT = list(LABELS)
HALF = [label if i < 150 else (label + 1) % 3 for i, label in enumerate(LABELS)]
NEARLY = [label if i > 2 else (label + 1) % 3 for i, label in enumerate(LABELS)]


@pytest.fixture(autouse=True)
def executor(site: Client, site_app: FastAPI) -> None:
    site_app.state.runoff.executor = FakeExecutor()


@pytest.fixture
def make(site_app: FastAPI, add_run: Any) -> Any:
    """A finished run with answers."""

    def run(name: str, predicted: list[int], model: str = "cnn", **values: Any) -> Run:
        made: Run = add_run(name, **values)
        config, _warnings = parse_config({"dataset": "mnist", "model": model, **values})
        with writing(site_app.state.runoff.engine) as session:
            made.config, made.model = config.model_dump(), model
            made.group, made.config_hash = group_hash(config), config_hash(config)
            session.merge(made)
            session.commit()
        give_answers(site_app, made, LABELS, predicted)
        return made

    return run


@pytest.fixture
def two(make: Any) -> tuple[Run, Run]:
    return make("CNN seed 0", RIGHT), make("FC seed 0", HALF, model="fc")


def words_of(text: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())


def page(site: Client, *runs: Run, **query: Any) -> str:
    answer = site.get("/compare", params=[*(("run", run.id) for run in runs), *query.items()])
    assert answer.status_code == 200, words_of(answer.text)
    assert "style=" not in answer.text
    assert "onclick" not in answer.text
    return str(answer.text)


def heading_of(text: str) -> str:
    return words_of((re.search(r'<h1 id="verdict">.*?</h1>', text) or [""])[0])


def test_a_real_difference(site: Client, two: tuple[Run, Run]) -> None:
    text = page(site, *two)
    words = words_of(text)
    assert heading_of(text) == "CNN is better than FC by 50.0 points."
    assert 'class="card verdict w1"' in text
    assert "Real difference" in words
    assert "150 both right" in words
    assert "150 only CNN right" in words
    assert "0 only FC right" in words
    assert "Exact McNemar test p = 1.4 × 10⁻⁴⁵" in words
    assert "One pair, nothing to correct for." in words
    assert "One seed each: no spread to show." in words
    assert "One factor differs, model" in words


def test_the_base_turns_the_pair_round(site: Client, two: tuple[Run, Run]) -> None:
    text = page(site, *two, base=two[0].id)
    assert heading_of(text) == "CNN is better than FC by 50.0 points."
    assert "Difference −50.00 points" in words_of(text)
    assert 'class="card verdict w1"' in text


def test_too_close_to_call_says_what_would_decide(site: Client, make: Any) -> None:
    other = [label if i < 296 else (label + 1) % 3 for i, label in enumerate(LABELS)]
    text = page(site, make("CNN seed 0", NEARLY), make("FC seed 0", other, model="fc"))
    words = words_of(text)
    assert "Inconclusive" in words
    assert "What would decide it" in words
    assert "needs about" in words
    assert "Start 8 runs" in words
    assert "A wider margin" not in words


def test_identical_answers(site: Client, make: Any) -> None:
    text = page(site, make("CNN seed 0", NEARLY), make("FC seed 0", NEARLY, model="fc"))
    assert heading_of(text) == "Identical answers."
    assert 'class="card verdict negligible"' in text


def test_the_margin_stands_in_the_address(site: Client, two: tuple[Run, Run]) -> None:
    assert "Margin chosen by you: 2 points, default 0.5." in words_of(page(site, *two, margin="2"))
    assert "You typed x." in page(site, *two, margin="x")
    assert "at most 50 points" in page(site, *two, margin="60")


def test_three_runs_have_a_table_of_pairs(site: Client, two: tuple[Run, Run], make: Any) -> None:
    third = make("CNN seed 1", NEARLY, seed=1)
    text = page(site, *two, third)
    assert "All pairs" in text
    assert "3 pairs are shown" in words_of(text)
    focus = f"{two[1].id}.{third.id}"
    chosen = page(site, *two, third, pair=focus)
    assert heading_of(chosen) == "CNN seed 1 is better than FC by 49.0 points."
    with_base = page(site, *two, third, base=two[1].id)
    assert "2 pairs are shown" in words_of(with_base)


def test_seeds_of_two_recipes(site: Client, make: Any) -> None:
    runs = [make(f"CNN seed {i}", RIGHT if i else NEARLY, seed=i) for i in range(3)]
    runs += [make(f"FC seed {i}", HALF, seed=i, model="fc") for i in range(3)]
    text = page(site, runs[0], runs[3])
    words = words_of(text)
    assert "CNN is the better recipe by" in words
    assert "paired t" in words
    assert "The two recipes" in text
    assert "The standard deviation over seeds is" in words


def test_repeats_of_one_recipe(site: Client, make: Any) -> None:
    words = words_of(page(site, make("CNN seed 0", RIGHT), make("CNN seed 1", NEARLY, seed=1)))
    assert "One recipe: the noise over seeds" in words
    assert "Only the seed differs" in words


@pytest.mark.parametrize(("side", "count"), [("a", 150), ("b", 0), ("wrong", 0), ("right", 150), ("all", 300)])
def test_tabs_of_the_images(site: Client, two: tuple[Run, Run], side: str, count: int) -> None:
    words = words_of(page(site, *two, side=side))
    assert f"{min(count, 30)} of {count}" in words


def test_a_class_and_an_answer_filter_the_images(site: Client, two: tuple[Run, Run]) -> None:
    text = page(site, *two, side="all", label=0, predicted=1)
    assert "taken for one" in text
    assert "30 of 50" in words_of(text)


def test_an_image_shows_both_answers(site: Client, two: tuple[Run, Run]) -> None:
    words = words_of(page(site, *two, image=150))
    assert "Test image 150" in words
    assert "right: zero" in words
    assert "wrong: one" in words


def test_configuration_differs_in_the_model(site: Client, two: tuple[Run, Run]) -> None:
    words = words_of(page(site, *two))
    assert "2 fields differ" in words
    assert "6 feature maps" in words
    assert "8 hidden units" in words


def test_fewer_than_two_runs_are_a_choice(site: Client, two: tuple[Run, Run], add_run: Any) -> None:
    assert "Choose two runs or more." in page(site)
    fresh = add_run("fresh", status="queued")
    text = page(site, two[0])
    assert f'value="{two[0].id}" autocomplete="off" checked' in text
    assert "Choose what to compare CNN seed 0 with." in text
    assert "no finished epoch yet" in text
    assert f'value="{fresh.id}" autocomplete="off" disabled' in text


def test_without_runs_there_is_a_way_to_begin(site: Client) -> None:
    assert "mnist-fc-against-cnn" in page(site)


def test_a_run_that_does_not_exist(site: Client, two: tuple[Run, Run]) -> None:
    answer = site.get(f"/compare?run={two[0].id}&run=zzzzzzzzzz")
    assert answer.status_code == 404
    assert "There is no run zzzzzzzzzz." in answer.text


def test_too_many_runs(site: Client, make: Any) -> None:
    runs = [make(f"r{i}", RIGHT, seed=i) for i in range(9)]
    answer = site.get("/compare", params=[("run", run.id) for run in runs])
    assert answer.status_code == 422
    assert "at most 8 runs" in answer.text


def test_other_test_images_are_not_comparable(site: Client, site_app: FastAPI, two: tuple[Run, Run]) -> None:
    with writing(site_app.state.runoff.engine) as session:
        other = session.get(Run, two[1].id)
        assert other
        other.test_fingerprint = "e" * 64
        session.add(other)
        session.commit()
    text = page(site, *two)
    assert heading_of(text) == "Not comparable: FC was tested on other images."
    assert 'id="images"' not in text
    assert "Not all runs were tested on the same images." in text


def test_a_run_without_an_epoch(site: Client, two: tuple[Run, Run], add_run: Any) -> None:
    text = page(site, two[0], add_run("LeNet", status="running", model="lenet"))
    assert "LeNet has no finished epoch" in heading_of(text)
    assert 'data-live="true"' in text


def test_nothing_new_is_304(site: Client, two: tuple[Run, Run]) -> None:
    address = f"/compare?run={two[0].id}&run={two[1].id}"
    tag = site.get(address).headers["HX-PTag"]
    assert site.get(address, headers={"HX-PTag": tag}).status_code == 304


def test_figures_hold_all_runs(site: Client, two: tuple[Run, Run]) -> None:
    address = f"/compare/figures/accuracy.json?run={two[0].id}&run={two[1].id}&x=seconds"
    figure = site.get(address).json()
    assert [t["name"] for t in figure["data"] if "name" in t] == ["CNN seed 0", "FC seed 0"]
    assert figure["layout"]["xaxis"]["title"]["text"] == "seconds of training"
    assert len(site.get(address.replace("accuracy", "loss")).json()["data"]) == 4


def test_repeats_add_the_seeds_that_both_lack(site: Client, site_app: FastAPI, two: tuple[Run, Run]) -> None:
    answer = site.post("/compare/repeats", data={"a": two[0].id, "b": two[1].id, "further": "2"})
    assert (answer.status_code, answer.headers["Location"]) == (303, "/runs")
    with reading(site_app.state.runoff.engine) as session:
        started = session.exec(select(Run).where(Run.status == "queued")).all()
    assert sorted((run.model, run.seed) for run in started) == [("cnn", 1), ("cnn", 2), ("fc", 1), ("fc", 2)]
    assert {run.group for run in started} == {two[0].group, two[1].group}
    assert {run.name for run in started} == {"CNN, seed 1", "CNN, seed 2", "FC, seed 1", "FC, seed 2"}


# Parts ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "further", "expected"),
    [
        ({0}, {0}, 4, ([1, 2, 3, 4], [1, 2, 3, 4])),
        ({0, 1, 2, 3, 4}, {0}, 4, ([], [1, 2, 3, 4])),
        ({0, 1}, {5}, 2, ([5], [0, 1])),
        ({0}, {0}, 0, ([], [])),
    ],
)
def test_missing_seeds(a: set[int], b: set[int], further: int, expected: tuple[list[int], list[int]]) -> None:
    assert parts.missing_seeds(a, b, further) == expected


def answers(predicted: list[int], confidence: list[float]) -> Predictions:
    labels = np.array([0, 0, 1, 1])
    given = np.array(predicted, np.uint16)
    return Predictions(labels, given, np.array(confidence, np.float32), given == labels)


def test_the_surest_wrong_answer_comes_first() -> None:
    a, b = answers([0, 0, 1, 0], [0.9, 0.9, 0.9, 0.9]), answers([1, 1, 0, 0], [0.5, 0.8, 0.7, 0.6])
    assert parts.separating(a, b, "a", None, None).tolist() == [1, 2, 0]
    assert parts.separating(a, b, "wrong", None, None).tolist() == [3]
    assert parts.separating(a, b, "all", 1, 0).tolist() == [2, 3]


def test_matrix_difference_says_whom_a_cell_favours() -> None:
    a, b = answers([0, 0, 1, 1], [1] * 4), answers([0, 1, 1, 1], [1] * 4)
    found = parts.matrix_difference(a, b, (0, 1), 2, heat_of, 40)
    assert [[cell.difference for cell in row] for row in found.rows] == [[1, -1], [0, 0]]
    assert {cell.favours for cell in found.rows[0]} == {0}
    assert [(row.a, row.b, row.count) for row in found.classes] == [(1.0, 0.5, 2), (1.0, 1.0, 2)]
    assert parts.matrix_difference(a, b, (0, 1), 2, heat_of, 1).rows == []


def part(text: str, name: str) -> str:
    """The words of the element with that id, up to the end of its card."""
    return words_of(text[text.index(f'id="{name}"') :].split("</section>")[0])


def test_the_cost_of_the_accuracy_that_all_reached(site: Client, two: tuple[Run, Run]) -> None:
    text = page(site, *two)
    assert 'name="to" type="text" inputmode="decimal" value="50"' in text
    words = part(text, "to-accuracy")
    assert "To 50 % CNN FC" in words
    assert "Training time equal 5.0 s 5.0 s equal" in words
    assert "Training FLOPs equal 2 GFLOP 2 GFLOP equal" in words


def test_the_accuracy_stands_in_the_address(site: Client, two: tuple[Run, Run]) -> None:
    text = page(site, *two, to="0.978")
    words = part(text, "to-accuracy")
    assert "To 97.8 % CNN FC" in words
    assert "Training time 5.0 s not reached" in words
    assert "to=0.978" in text.split('id="curves"')[1].split("</section>")[0]  # links within the page keep it
    assert '<input type="hidden" name="to" value="0.978">' in text.split('id="compare-bar"')[1].split("</div>")[0]
    assert "accuracy=0.978" in text
    assert "The accuracy must be above 0 and at most 100 %. You typed high." in words_of(page(site, *two, to="high"))


def test_no_accuracy_was_reached_by_all(site: Client, two: tuple[Run, Run], add_run: Any) -> None:
    waiting = add_run("waiting", status="queued", test_fingerprint=two[0].test_fingerprint)
    assert "Not every run has reached an accuracy yet." in part(page(site, *two, waiting), "to-accuracy")
    assert "No run has reached 99.5 %." in part(page(site, two[1], waiting, to="99.5"), "to-accuracy")
