"""The compare page: verdict, what it rests on, what the address chooses, and all that can't be compared."""

from __future__ import annotations

import html
import re
import shutil
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from sqlmodel import select

from app.compare.confusion_matrix import matrix_difference
from app.compare.more_seeds import missing_seeds
from app.compare.pair_images import PairImages, class_table
from app.store.database import reading, writing
from app.store.predictions import Predictions
from app.store.tables import Epoch, Run
from tests.app.page_answers import FakeExecutor, give_answers, joined
from trainer.config import config_hash, group_hash, parse_config
from trainer.run_folder import RunFolder

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
    assert heading_of(text) == "Identical predictions."
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
    assert "predicted as one" in text
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
    assert "Choose two or more runs." in page(site)
    fresh = add_run("fresh", status="queued")
    text = joined(page(site, two[0]))
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


def test_too_many_runs(site: Client) -> None:
    answer = site.get("/compare", params=[("run", f"{i:010d}") for i in range(51)])
    assert answer.status_code == 422
    assert "At most 50 runs can be compared at once." in answer.text


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


def test_repeats_lead_back_to_the_comparison_and_nowhere_else(site: Client, two: tuple[Run, Run]) -> None:
    back = f"/compare?run={two[0].id}&run={two[1].id}#recipes"
    assert f'name="back" value="{html.escape(back)}"' in site.get(back.removesuffix("#recipes")).text
    body = {"a": two[0].id, "b": two[1].id, "further": "1"}
    assert site.post("/compare/repeats", data=body | {"back": back}).headers["Location"] == back
    for other in ("https://elsewhere.example/compare?", "//elsewhere.example", "/runs"):
        assert site.post("/compare/repeats", data=body | {"back": other}).status_code == 422


def test_repeats_of_one_recipe_are_not_started_twice(
    site: Client, site_app: FastAPI, two: tuple[Run, Run], make: Any
) -> None:
    other = make("CNN seed 1", NEARLY, seed=1)
    for pair in ((two[0], two[0]), (two[0], other)):
        answer = site.post("/compare/repeats", data={"a": pair[0].id, "b": pair[1].id, "further": "2"})
        assert answer.status_code == 422
        assert "These are repeats of one recipe. Choose runs of two recipes" in answer.text
    with reading(site_app.state.runoff.engine) as session:
        assert len(session.exec(select(Run)).all()) == 3


@pytest.mark.parametrize("margin", ["1e-320", "1e-200", "0.00001", "0", "51", "nan"])
def test_a_margin_that_can_not_be(site: Client, two: tuple[Run, Run], margin: str) -> None:
    words = words_of(page(site, *two, margin=margin))
    assert f"The margin must be at least 0.0001 and at most 50 points. You typed {margin}." in words
    for route in ("compare", "compare/pairs.csv", "compare/report"):
        query = {"run": [run.id for run in two], "margin": margin if margin != "0.00001" else "1e-7"}
        answer = site.get(f"/api/v1/{route}", params=query)
        assert answer.status_code == 422
        assert "margin" in answer.json()["detail"].lower()


def test_a_damaged_run_is_named(site: Client, site_app: FastAPI, two: tuple[Run, Run]) -> None:
    folder = RunFolder(site_app.state.runoff.settings.runs / two[1].id)
    np.save(folder.labels_path, -np.ones(len(LABELS), np.int64))
    for route in ("compare", "api/v1/compare", "api/v1/compare/report", "api/v1/compare/pairs.csv"):
        answer = site.get(f"/{route}", params={"run": [run.id for run in two]})
        assert answer.status_code == 409
        assert "FC seed 0: The test predictions in labels.npy are damaged" in answer.text


def test_a_run_on_its_way_takes_no_repeat_back_to_its_epoch(site: Client, site_app: FastAPI, make: Any) -> None:
    """Recipes are compared at the end of their finished runs, whatever epoch a run that is shown has reached."""
    cnn = [make(f"CNN seed {seed}", RIGHT, seed=seed, epochs=3) for seed in (0, 1)]
    fc = [make(f"FC seed {seed}", HALF, model="fc", seed=seed, epochs=3) for seed in (0, 1)]
    live = make("CNN seed 2", NEARLY, seed=2, epochs=3)
    with writing(site_app.state.runoff.engine) as session:
        for run in (*cnn, *fc):
            folder = RunFolder(site_app.state.runoff.settings.runs / run.id)
            shutil.copy(folder.predictions_path(1), folder.predictions_path(3))
            row = session.get(Run, run.id)
            assert row is not None
            row.epochs_done = 3
        row = session.get(Run, live.id)
        assert row is not None
        row.status = "running"
        session.commit()
    found = site.get("/api/v1/compare", params={"run": [live.id, fc[0].id]}).json()
    assert [group["epoch"] for group in found["groups"]] == [3, 3]
    assert found["recipes"][0]["n_a"] == 2
    assert found["groups"][0]["summary"] == "2 of 3 finished, 1 running."
    assert found["fairness"][-1].startswith("1 run is not finished, and the runs are compared after 1 to 3 epochs")


# Parts ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "further", "expected"),
    [
        ({0}, {0}, 4, ([1, 2, 3, 4], [1, 2, 3, 4])),
        ({0, 1, 2, 3, 4}, {0}, 4, ([], [1, 2, 3, 4])),
        ({0, 1}, {5}, 2, ([5], [0, 1])),
        ({0}, {0}, 0, ([], [])),
        ({2**32 - 1}, {2**32 - 1}, 2, ([0, 1], [0, 1])),  # behind the last seed come the lowest free ones
    ],
)
def test_missing_seeds(a: set[int], b: set[int], further: int, expected: tuple[list[int], list[int]]) -> None:
    assert missing_seeds(a, b, further) == expected


def answers(predicted: list[int], confidence: list[float]) -> Predictions:
    labels = np.array([0, 0, 1, 1])
    given = np.array(predicted, np.uint16)
    return Predictions(labels, given, np.array(confidence, np.float32))


def test_the_surest_wrong_answer_comes_first() -> None:
    a, b = answers([0, 0, 1, 0], [0.9, 0.9, 0.9, 0.9]), answers([1, 1, 0, 0], [0.5, 0.8, 0.7, 0.6])
    pair = PairImages(a, b)
    assert pair.selection().of("a").tolist() == [1, 2, 0]
    assert pair.selection().of("wrong").tolist() == [3]
    assert pair.selection(label=1, predicted=0).of("all").tolist() == [3, 2]
    assert pair.selection().counts == {"a": 3, "b": 0, "wrong": 1, "right": 0, "all": 4}


def test_a_page_compares_the_images_of_the_pair_once(
    site: Client, two: tuple[Run, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = []
    outcomes = vars(PairImages)["outcomes"]
    compute = outcomes.func

    def counted(pair: PairImages) -> Any:
        computed.append(pair.places)
        return compute(pair)

    monkeypatch.setattr(outcomes, "func", counted)
    page(site, *two)
    assert computed == [(0, 1)]


def test_matrix_difference_says_whom_a_cell_favours() -> None:
    a, b = answers([0, 0, 1, 1], [1] * 4), answers([0, 1, 1, 1], [1] * 4)
    found = matrix_difference(a, b, (0, 1), 2)
    assert [[cell.difference for cell in row] for row in found] == [[1, -1], [0, 0]]
    assert {cell.favours for cell in found[0]} == {0}


def test_classes_worst_for_the_first_run_first() -> None:
    a, b = answers([0, 0, 0, 1], [1] * 4), answers([0, 1, 1, 1], [1] * 4)
    table = class_table(PairImages(a, b), ["zero", "one"])
    assert [
        (row.label, row.accuracy_a, row.accuracy_b, row.difference, row.num_images) for row, _strip in table.rows
    ] == [
        (1, 0.5, 1.0, -0.5, 2),
        (0, 1.0, 0.5, 0.5, 2),
    ]
    assert table.level == pytest.approx(0.975)
    assert all(row.interval[0] < row.difference < row.interval[1] for row, _strip in table.rows)


def part(text: str, name: str) -> str:
    """The words of the element with that id, up to the end of its card."""
    return words_of(text[text.index(f'id="{name}"') :].split("</section>")[0])


def test_the_cost_of_the_accuracy_that_all_reached(site: Client, two: tuple[Run, Run]) -> None:
    text = joined(page(site, *two))
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


# Many runs -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def twelve(make: Any) -> list[Run]:
    shares = [HALF, RIGHT, NEARLY, HALF]
    return [make(f"R{i}", shares[i % 4], model=["fc", "cnn"][i % 2], learning_rate=0.01 * (i + 1)) for i in range(12)]


def test_of_many_runs_the_first_is_the_base(site: Client, twelve: list[Run]) -> None:
    text = page(site, *twelve)
    words = part(text, "pairs")
    assert "Differences against R0" in words
    assert "every run is compared with the first one" in words
    assert "11 pairs are shown" in words
    assert text.count('class="chart diffstrip"') >= 12
    words = part(page(site, *twelve, base=twelve[3].id), "pairs")
    assert "Differences against R3" in words
    assert "nobody chose" not in words


def test_many_runs_keep_letters_and_their_budgets_are_rows(site: Client, twelve: list[Run]) -> None:
    text = page(site, *twelve)
    assert [f"{letter} R{i}" in words_of(text) for i, letter in enumerate("ABCDEFGHIJKL")] == [True] * 12
    assert "Budget Parameters equal Epochs equal" in part(text, "budget")


def test_the_best_of_several_is_marked(site: Client, twelve: list[Run]) -> None:
    words = words_of(page(site, *twelve))
    assert "R1 is the best of 12 runs on the same images that were used to choose it" in words
    assert "B R1 optimistic" in words
    assert "optimistic" not in words_of(page(site, *twelve[:2]))


def test_curves_say_their_choices_in_the_address(site: Client, two: tuple[Run, Run]) -> None:
    text = page(site, *two, x="flops", smooth="0.8", loss="log", value="best")
    curves = text.split('id="curves"')[1].split("</section>")[0]
    address = html.unescape((re.search(r'data-figure="(.*?loss.json.*?)"', curves) or ["", ""])[1])
    assert address.endswith("&x=flops&smooth=0.8&loss=log")
    figure = site.get(address).json()
    assert figure["layout"]["yaxis"]["type"] == "log"
    assert figure["layout"]["xaxis"]["title"]["text"] == "training FLOPs, nominal"
    assert "smoothed" in figure["data"][-1]["hovertemplate"]
    assert "The best epoch of each run was chosen on the test images" in words_of(curves)
    assert "CNN seed 0 100.00" in words_of(curves)
    assert 'value="0.8" selected' in curves


@pytest.mark.parametrize(
    "query", [{"smooth": "1"}, {"smooth": "nan"}, {"x": "hours"}, {"over": "x"}, {"value": "worst"}]
)
def test_choices_that_do_not_exist_are_refused(site: Client, two: tuple[Run, Run], query: dict[str, str]) -> None:
    runs = [("run", run.id) for run in two]
    assert site.get("/compare", params=[*runs, *query.items()]).status_code == 422
    assert site.get("/compare/figures/loss.json", params=[*runs, *query.items()]).status_code == 422


def test_the_mean_over_repeats(site: Client, make: Any) -> None:
    cnn = [make(f"CNN seed {i}", RIGHT if i else NEARLY, seed=i) for i in range(3)]
    fc = make("FC seed 0", HALF, model="fc")
    assert "Mean over repeats" in page(site, cnn[0], fc)
    curves = page(site, cnn[0], fc, over="seeds").split('id="curves"')[1].split("</section>")[0]
    assert "CNN 3 seeds 99.67" in words_of(curves)
    assert "FC seed 0 50.00" in words_of(curves)
    figure = site.get(f"/compare/figures/accuracy.json?run={cnn[0].id}&run={fc.id}&over=seeds").json()
    means = [t for t in figure["data"] if t.get("text")]
    assert [t["name"] for t in means] == ["CNN"]
    assert means[0]["y"] == pytest.approx([100 * (1 + 1 + 297 / 300) / 3])
    assert len([t for t in figure["data"] if t.get("name") == "CNN" and not t.get("text")]) == 3


def test_without_repeats_there_is_no_mean_to_choose(site: Client, two: tuple[Run, Run]) -> None:
    assert "Mean over repeats" not in page(site, *two)


def test_classes_link_to_their_images(site: Client, two: tuple[Run, Run]) -> None:
    text = page(site, *two)
    classes = text.split('id="classes"')[1].split("</section>")[0]
    assert "each interval at 98.33 %, so that together they hold at 95 %" in words_of(classes)
    assert "zero 100 100.0 50.0 +50.0" in words_of(classes)
    assert "side" not in classes.split("<tbody>")[1].split("</a>")[0]  # only A right is the page's own choice
    turned = page(site, *two, base=two[0].id).split('id="classes"')[1].split("</section>")[0]
    assert "side=b" in turned
    assert "label=0" in turned


def test_evidence_has_agreement_kappa_and_calibration(site: Client, two: tuple[Run, Run], make: Any) -> None:
    words = words_of(page(site, *two))
    assert "Same prediction 50.00 %" in words
    assert "Cohen's kappa 0.250 (" in words
    assert "Calibration error, points" in words
    assert "10.00 " in part(page(site, *two), "metrics")  # 90 % sure, all right
    assert "Equivalence within" not in words
    other = make("CNN seed 1", RIGHT, seed=1)
    assert "Equivalence within ±5 points (two one-sided tests): p = " in words_of(page(site, two[0], other, margin="5"))


def test_a_defect_is_shown_and_the_answers_count(site: Client, site_app: FastAPI, two: tuple[Run, Run]) -> None:
    with writing(site_app.state.runoff.engine) as session:
        run, epoch = session.get(Run, two[0].id), session.get(Epoch, (two[0].id, 1))
        assert run
        assert epoch
        run.test_correct = epoch.test_correct = 200
        run.test_accuracy = epoch.test_accuracy = 2 / 3
        session.add(run)
        session.add(epoch)
        session.commit()
    text = page(site, *two)
    assert (
        "Defect of this run: the stored predictions of epoch 1 give 300 of 300 right, but the log says 200."
        in words_of(text)
    )
    assert "CNN seed 0 defect 100.00" in part(text, "metrics")
    body = site.get(f"/api/v1/compare?run={two[0].id}&run={two[1].id}").json()
    assert [bool(one["defect"]) for one in body["answers"]] == [True, False]
    assert body["answers"][0]["accuracy"] == 1
    assert "the log says 200" in words_of(site.get(f"/runs/{two[0].id}").text)
    answers = site.get(f"/api/v1/runs/{two[0].id}/predictions?limit=1").json()
    assert answers["num_correct"] == 300
    assert "the log says 200" in answers["defect"]
    assert site.get(f"/api/v1/runs/{two[1].id}/predictions?limit=1").json()["defect"] == ""


def test_all_fields_of_the_configuration(site: Client, two: tuple[Run, Run]) -> None:
    config = page(site, *two).split('id="config"')[1].split("</section>")[0]
    assert re.findall(r'<tr id="config-(\w+)"', config) == ["model", "width"]
    assert "batch_size" not in config.split("<tbody>")[1]
    assert 'href="#config-model"' in config
    whole = page(site, *two, config="all").split('id="config"')[1].split("</section>")[0]
    fields = re.findall(r'<th scope="row" class="mono">(\w+)</th>', whole)
    assert fields.index("dataset") < fields.index("model") < fields.index("batch_size")


def test_what_is_not_recorded_differs_from_everything(site: Client, site_app: FastAPI, two: tuple[Run, Run]) -> None:
    with writing(site_app.state.runoff.engine) as session:
        run = session.get(Run, two[0].id)
        assert run
        run.config = {name: value for name, value in run.config.items() if name != "batch_size"}
        session.add(run)
        session.commit()
    row = page(site, *two).split('id="config-batch_size"')[1].split("</tr>")[0]
    assert row.count('class="diff"') == 1
    assert "not recorded" in row


def test_what_is_taken_along(site: Client, two: tuple[Run, Run]) -> None:
    text = page(site, *two, margin="2", x="seconds")
    links = [html.unescape(link) for link in re.findall(r'href="(/api/v1/compare[^"]*)"', text)]
    assert {link.split("?")[0] for link in links} == {
        "/api/v1/compare",
        "/api/v1/compare/pairs.csv",
        "/api/v1/compare/epochs.csv",
        "/api/v1/compare/report",
    }
    for link in links:
        assert site.get(link).status_code == 200
    report = next(link for link in links if "/report" in link)
    assert "margin=0.02" in report
    assert "x=seconds" in report
    assert f"pair={two[0].id}.{two[1].id}" in report


def test_choosing_a_base_keeps_margin_and_epoch(site: Client, twelve: list[Run]) -> None:
    bar = page(site, *twelve, margin="2", at="1").split('id="compare-bar"')[1].split('id="base"')[0]
    assert '<input type="hidden" name="margin" value="2">' in bar
    assert '<input type="hidden" name="at" value="1">' in bar
