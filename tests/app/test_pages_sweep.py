"""The page of a sweep: its best run and how far to trust it, plots, table, what its buttons do."""

from __future__ import annotations

import html
import re
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from fastapi import FastAPI
from sqlmodel import select

from app.draw import sweep as sweep_charts
from app.draw.svg import Drawing
from app.runs.rows import mean_of_known
from app.runs.sweeps import Level
from app.statistics import best_of_n_optimism
from app.store.database import reading, writing
from app.store.tables import Run
from tests.app.page_answers import FakeExecutor, give_answers

Client = Any
LABELS = [0, 1, 2] * 100
SWEEP = "sweep00001"


@pytest.fixture(autouse=True)
def executor(site: Client, site_app: FastAPI) -> None:
    site_app.state.runoff.executor = FakeExecutor()


def answers(seed: int, share: float) -> list[int]:
    """About ``share`` of the images right."""
    right = np.random.default_rng(seed).random(len(LABELS)) < share
    return [label if ok else (label + 1) % 3 for label, ok in zip(LABELS, right, strict=True)]


@pytest.fixture
def make(site_app: FastAPI, add_run: Any) -> Any:
    """A run of the sweep; ``share`` None leaves it without answers."""

    def run(share: float | None, **values: Any) -> Run:
        name = f"learning_rate {values.get('learning_rate', 0.01)}, seed {values.get('seed', 0)}"
        row: Run = add_run(name, **{"sweep": SWEEP, "status": "finished" if share is not None else "queued", **values})
        if share is not None:
            give_answers(site_app, row, LABELS, answers(row.seed + round(1000 * share), share))
        return row

    return run


@pytest.fixture
def grid(make: Any) -> list[Run]:
    """Two learning rates x two batch sizes x two seeds; the rate 0.1 is better by far."""
    shares = {(0.01, 64): 0.5, (0.01, 32): 0.6, (0.1, 64): 0.8, (0.1, 32): 0.9}
    return [
        make(share, learning_rate=rate, batch_size=size, seed=seed)
        for (rate, size), share in shares.items()
        for seed in (0, 1)
    ]


def words_of(text: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())


def page(site: Client, **query: Any) -> str:
    answer = site.get(f"/sweeps/{SWEEP}", params=query)
    assert answer.status_code == 200, words_of(answer.text)
    assert "style=" not in answer.text
    assert "onclick" not in answer.text
    return str(answer.text)


def part(text: str, name: str) -> str:
    """The element with that id, up to the end of its card."""
    return text[text.index(f'id="{name}"') :].split("</section>")[0]


def stored(app: FastAPI, run: Run) -> Run:
    with reading(app.state.runoff.engine) as session:
        found = session.get(Run, run.id)
        assert found is not None
        return found


def test_the_best_run_and_its_optimism(site: Client, site_app: FastAPI, grid: list[Run]) -> None:
    rows = [stored(site_app, run) for run in grid]
    best = max(rows, key=lambda run: run.test_accuracy or 0)
    correct = np.array(
        [
            answers(run.seed + round(1000 * s), s)
            for run, s in zip(rows, np.repeat([0.5, 0.6, 0.8, 0.9], 2), strict=True)
        ]
    )
    ranked = sorted(range(8), key=lambda i: -(rows[i].test_accuracy or 0))
    drop = best_of_n_optimism((correct == np.array(LABELS))[ranked])
    assert drop > 0.001
    words = words_of(part(page(site), "best"))
    assert f"of 8 finished runs {best.name} {100 * (best.test_accuracy or 0):.2f} %" in words
    assert "The winner's number is too high" in words
    assert f"such a winner's accuracy was {100 * drop:.2f} points lower" in words
    assert "1,000 random splits" in words
    assert "By the mean over seeds: Batch size 32 · Learning rate 0.1 , 89.50" in words


def test_links_to_compare_the_best_and_to_their_difficulty(site: Client, grid: list[Run]) -> None:
    text = html.unescape(part(page(site), "best"))
    compared = re.search(r'href="/compare\?([^"]*)"', text)
    assert compared is not None
    ids = re.findall(r"run=(\w+)", compared[1])
    by_id = {run.id: run for run in grid}
    assert [by_id[i].config["batch_size"] for i in ids] == [32, 64, 32, 64]  # one of each group, best first
    assert {by_id[i].seed for i in ids} == {0}  # and of one seed
    assert "Compare the best 4" in words_of(text)
    difficulty = re.search(r'href="/difficulty\?([^"]*)"', text)
    assert difficulty is not None
    assert len(re.findall(r"run=", difficulty[1])) == 8


def test_the_table_sorts_folds_and_filters(site: Client, grid: list[Run]) -> None:
    def rows(**query: Any) -> list[str]:
        return [words_of(row) for row in re.findall(r"<tr id=.*?</tr>", part(page(site, **query), "table"), re.S)]

    folded = rows()
    assert len(folded) == 4
    assert [row.split()[-7:-5] for row in folded] == [["32", "0.1"], ["64", "0.1"], ["32", "0.01"], ["64", "0.01"]]
    assert [row.split()[-7] for row in rows(sort="batch_size")] == ["32", "32", "64", "64"]
    assert [row.split()[-7] for row in rows(sort="-batch_size")] == ["64", "64", "32", "32"]
    assert len(rows(apart="true")) == 8
    assert len(rows(learning_rate="0.1")) == 2
    assert len(rows(learning_rate="0.1", batch_size="32", apart="true")) == 2
    assert len(rows(learning_rate="7")) == 4  # a value that no run has filters nothing
    assert rows(sort="nonsense") == folded


def test_addresses_keep_sort_and_filters(site: Client, grid: list[Run]) -> None:
    text = html.unescape(part(page(site, learning_rate="0.1", sort="seconds"), "table"))
    assert 'aria-sort="ascending"' in text
    assert f'href="/sweeps/{SWEEP}?sort=-seconds&learning_rate=0.1"' in text  # the other way round
    assert f'href="/sweeps/{SWEEP}?sort=batch_size&learning_rate=0.1"' in text
    assert '<option value="0.1" selected>' in text
    assert f'hx-get="/sweeps/{SWEEP}?sort=seconds&apart=true&learning_rate=0.1"' in text


def test_one_factor_plots_and_parallel_coordinates(site: Client, grid: list[Run]) -> None:
    text = page(site)
    factors = part(text, "factors")
    assert factors.count("<svg") == 2
    assert factors.count("<circle") == 16  # every run a ring, in both
    assert "Test accuracy by Learning rate. 0.01: mean" in html.unescape(factors)
    assert "were not combined with the same values of the other fields" not in factors
    parallel = part(text, "parallel")
    assert parallel.count("<svg") == 2  # for wide and for narrow screens
    assert parallel.count("<polyline") == 16
    assert parallel.count('class="ln best"') == 2
    filtered = part(page(site, learning_rate="0.1"), "parallel")
    assert filtered.count('class="ln off"') == 8


def test_a_sweep_on_its_way(site: Client, make: Any) -> None:
    make(0.5, learning_rate=0.1)
    make(None, learning_rate=0.1, seed=1)
    make(None, learning_rate=0.01, status="running", epochs=2)
    text = page(site)
    header = words_of(part(text, "sweep-header"))
    assert "1 of 3 finished, 1 running, 1 queued" in header
    assert "Cancel the remaining 2 runs" in header
    assert 'data-live="true"' in text
    assert "of 1 finished run" in words_of(part(text, "best"))
    assert "The winner's number is too high" not in words_of(part(text, "best"))  # nothing was chosen yet
    assert 'id="parallel"' not in text  # one field: its own plot says it all


def test_repeats_alone_are_one_row_without_plots(site: Client, make: Any) -> None:
    for seed in range(3):
        make(0.5 + seed / 10, seed=seed)
    text = page(site)
    assert 'id="factors"' not in text
    assert "Best run of 3 finished runs" in words_of(part(text, "best"))
    [row] = re.findall(r"<tr id=.*?</tr>", part(text, "table"), re.S)
    assert row.count('class="dot"') == 3  # every run a dot beside the mean
    assert "seeds 0 to 2" in words_of(row)


def test_a_sweep_that_waits_has_no_best(site: Client, make: Any) -> None:
    make(None, learning_rate=0.1)
    make(None, learning_rate=0.01)
    words = words_of(page(site))
    assert "The best run appears when the first one has finished." in words
    assert "Plots of each field appear when the first runs have finished." in words


def test_missing_combinations_are_said(site: Client, make: Any) -> None:
    for rate, size in ((0.1, 32), (0.1, 64), (0.01, 32)):
        make(0.5 + rate, learning_rate=rate, batch_size=size)
    make(None, learning_rate=0.01, batch_size=64)
    assert page(site).count("were not combined with the same values of the other fields") == 2


def test_a_choice_by_validation_needs_no_warning(site: Client, make: Any) -> None:
    make(0.9, learning_rate=0.1, validation_accuracy=0.6, validation_fraction=0.1)
    worse = make(0.7, learning_rate=0.01, validation_accuracy=0.8, validation_fraction=0.1)
    words = words_of(part(page(site), "best"))
    assert worse.name in words
    assert "Chosen by its validation accuracy of 80.00 %" in words
    assert "The winner's number is too high" not in words
    assert "Validation, %" in words_of(part(page(site), "table"))


def test_answers_that_are_gone_are_said(site: Client, site_app: FastAPI, grid: list[Run]) -> None:
    from trainer.run_folder import RunFolder

    RunFolder(site_app.state.runoff.settings.runs / grid[0].id).predictions_path(1).unlink()
    assert "How much is unknown: the stored predictions of some runs are missing." in words_of(part(page(site), "best"))


def test_answers_that_come_back_count_again(site: Client, site_app: FastAPI, grid: list[Run]) -> None:
    best = site_app.state.runoff.settings.runs / grid[0].id / "predictions"
    best.rename(best.with_name("elsewhere"))
    without = part(page(site), "best")
    best.with_name("elsewhere").rename(best)
    assert part(page(site), "best") != without


def test_an_accuracy_of_zero_is_a_number_in_a_mean() -> None:
    assert mean_of_known([0.0, 0.5, None]) == 0.25
    assert mean_of_known([None]) is None


def test_other_test_images_are_not_ranked_together(site: Client, site_app: FastAPI, make: Any) -> None:
    same = [make(share, learning_rate=rate) for share, rate in ((0.5, 0.1), (0.6, 0.2))]
    other = make(0.95, learning_rate=0.3)
    with writing(site_app.state.runoff.engine) as session:
        row = session.get(Run, other.id)
        assert row is not None
        row.test_fingerprint = "0" * 64
        session.add(row)
        session.commit()
    words = words_of(part(page(site), "best"))
    assert same[1].name in words
    assert "of 2 finished runs" in words
    assert "tested on different images" in words


def test_nothing_new_is_nothing_sent(site: Client, grid: list[Run]) -> None:
    first = site.get(f"/sweeps/{SWEEP}")
    again = site.get(f"/sweeps/{SWEEP}", headers={"HX-PTag": first.headers["HX-PTag"]})
    assert (again.status_code, again.text) == (304, "")


def test_an_unknown_sweep_is_not_found(site: Client) -> None:
    assert site.get("/sweeps/nothing").status_code == 404
    assert site.post("/sweeps/nothing/cancel").status_code == 404


def test_cancel_the_rest(site: Client, site_app: FastAPI, make: Any) -> None:
    done, waiting = make(0.5, learning_rate=0.1), make(None, learning_rate=0.01)
    answer = site.post(f"/sweeps/{SWEEP}/cancel")
    assert (answer.status_code, answer.headers["Location"]) == (303, f"/sweeps/{SWEEP}")
    assert [stored(site_app, run).status for run in (done, waiting)] == ["finished", "cancelled"]


def test_more_repeats_from_a_row(site: Client, site_app: FastAPI, grid: list[Run]) -> None:
    group = grid[0].group
    assert f'hx-post="/groups/{group}/repeats"' in page(site)
    assert f'hx-post="/groups/{group}/repeats"' in site.get("/runs").text
    answer = site.post(f"/groups/{group}/repeats", data={"count": "3"}, headers={"HX-Request": "true"})
    assert answer.status_code == 200
    assert "3 more repeats of learning_rate 0.01: seeds 2, 3, 4" in words_of(answer.text)
    with reading(site_app.state.runoff.engine) as session:
        added = session.exec(select(Run).where(Run.group == group, Run.status == "queued")).all()
    assert {run.seed for run in added} == {2, 3, 4}
    assert {run.sweep for run in added} == {SWEEP}
    plain = site.post(f"/groups/{group}/repeats", data={"count": "1"})
    assert (plain.status_code, plain.headers["Location"]) == (303, f"/runs?group={group}")
    assert site.post(f"/groups/{group}/repeats", data={"count": "0"}).status_code == 422


def test_runs_lead_to_their_sweep(site: Client, grid: list[Run]) -> None:
    assert f'href="/sweeps/{SWEEP}"' in site.get("/runs").text
    assert f'href="/sweeps/{SWEEP}"' in site.get(f"/runs/{grid[0].id}").text


def test_the_table_shows_a_part_at_a_time(site: Client, grid: list[Run]) -> None:
    assert 'id="more-rows"' not in page(site)
    text = page(site, shown=3)
    assert len(re.findall(r'<tr id="group-', text)) == 3
    assert "Show 1 more row 3 of 4" in words_of(part(text, "table"))
    assert (
        "shown" not in re.findall(r'href="(/sweeps/[^"]*sort=[^"]*)"', text)[0]
    )  # another order begins at its first rows
    assert len(re.findall(r'<tr id="group-', page(site, shown=4))) == 4


# Geometry ------------------------------------------------------------------------------------------------------------


def drawn(drawing: Drawing, element: str) -> list[Any]:
    """The elements of that name in a drawing."""
    root = ElementTree.fromstring(drawing.__html__())
    return list(root.iter(element))


def test_a_field_that_does_not_apply_has_a_place_of_its_own() -> None:
    axes = [sweep_charts.Axis("Momentum", ["0.5", "0.9"])]
    paths = [sweep_charts.Path("a", [0], 0.5), sweep_charts.Path("b", [-1], 0.6)]
    wide = sweep_charts.parallel(axes, paths).wide
    assert "–" in [text.text for text in drawn(wide, "text")]
    first, second = (float(line.get("points").split(" ")[0].split(",")[1]) for line in drawn(wide, "polyline"))
    assert first > second  # the place of the dash is above both values


def test_higher_accuracy_stands_higher_and_the_mean_between() -> None:
    levels = [Level("a", [0.2, 0.8], 0.5), Level("b", [], None)]
    chart = sweep_charts.one_factor("Field", levels, sweep_charts.domain_of([0.2, 0.8]))
    low, high = (float(dot.get("cy")) for dot in drawn(chart, "circle"))
    [mean] = [path.get("d") for path in drawn(chart, "path") if path.get("class") == "pt"]
    assert low > float(mean.split(" ")[1].split("l")[0]) + 6 > high
    assert drawn(chart, "polyline") == []


def test_a_domain_holds_its_values_and_no_more_than_all() -> None:
    assert sweep_charts.domain_of([]) == (0.0, 100.0)
    low, high = sweep_charts.domain_of([0.999, 1.0])
    assert low < 99.9
    assert high == 100.0
    low, high = sweep_charts.domain_of([0.5])
    assert low < 50 < high


def test_many_runs_are_drawn_faint_and_without_words_of_their_own() -> None:
    many = sweep_charts.MANY + 1
    accuracies = [0.5 + i / 1000 for i in range(many)]
    chart = sweep_charts.one_factor("Field", [Level("a", accuracies, 0.6)], sweep_charts.domain_of(accuracies))
    [cloud] = [path for path in drawn(chart, "path") if path.get("class") == "cloud"]
    assert (drawn(chart, "circle"), cloud.get("d").count("M")) == ([], many)
    axes = [sweep_charts.Axis("Field", ["a", "b"])]
    paths = [
        sweep_charts.Path(f"run {i}", [i % 2], accuracy, "best" if i == 7 else "")
        for i, accuracy in enumerate(accuracies)
    ]
    both = sweep_charts.parallel(axes, paths)
    for drawing in (both.wide, both.narrow):
        assert "crowd" in drawing.css.split()
        assert [title.text for title in drawn(drawing, "title")] == ["run 7: 50.70 %"]
