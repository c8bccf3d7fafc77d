"""The runs page: what rows say, how the address chooses them, repeats as one row, and the actions on ticked runs."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from sqlalchemy import event

from app.routes.pages import runs as runs_page
from app.routes.pages import runs_view
from app.routes.pages.runs_view import RunsPage, RunsQuery
from app.runs import table as run_table
from app.runs.columns import columns_of
from app.runs.rows import BestAccuracy, GroupRow, RunRow
from app.runs.table import PAGE_SIZE, SPARK_POINTS
from app.store.database import reading, writing
from app.store.fields import fields
from app.store.queries import RunFilter
from app.store.search import SearchError, condition
from app.store.tables import Epoch, Run
from tests.app.page_answers import joined

Client = Any


def rows_of(html: str) -> list[str]:
    """The table's rows as text, in order."""
    rows = re.findall(r"<tr id=.*?</tr>", html, flags=re.DOTALL)
    return [" ".join(re.sub(r"<[^>]+>", " ", row).split()) for row in rows]


def names_of(html: str) -> list[str]:
    return re.findall(r'data-name="([^"]*)"', html)


# Empty states -----------------------------------------------------------------------------------------------------------


def test_without_runs_the_page_says_how_to_begin(site: Client) -> None:
    text = site.get("/runs").text
    assert "No runs yet" in text
    assert "make demo" in text
    assert "preset=mnist-fc-against-cnn" in text
    assert "<table" not in text


def test_no_match_names_the_filters_and_clears_them(site: Client, add_run: Any) -> None:
    add_run("CNN")
    text = joined(site.get("/runs?tag=permuted&status=failed").text)
    assert "No run has the status failed and the tag permuted." in text
    assert 'href="/runs" hx-get="/runs">Clear filters' in text


def test_archived_runs_are_left_out_and_can_be_shown(site: Client, add_run: Any) -> None:
    add_run("old", archived=True)
    assert "All runs are archived" in site.get("/runs").text
    assert names_of(site.get("/runs?archived=true").text) == ["old"]


def test_home_leads_to_the_runs(site: Client) -> None:
    answer = site.get("/")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/runs")


# Rows -------------------------------------------------------------------------------------------------------------------


def test_a_finished_run(site: Client, add_run: Any) -> None:
    add_run("CNN seed 0", correct=9_780, epochs=5, tags=["part-1"])
    [row] = rows_of(site.get("/runs").text)
    assert row == "Finished CNN seed 0 part-1 cnn 6,422 mnist 5 of 5 97.80 97.49 to 98.07 97.80 ep 5 10.0 s 6,000"


def test_a_running_run_counts_down_and_can_be_cancelled(site: Client, add_run: Any) -> None:
    run = add_run(
        "CNN",
        status="running",
        epochs=5,
        step=1_400,
        steps_per_epoch=938,
        total_steps=4_690,
        seconds_left=27.0,
        updated_at="2999-01-01T00:00:00.000Z",
    )
    text = site.get("/runs").text
    assert "epoch 2 of 5" in text
    assert 'data-left="27.00"' in text
    assert ">27 s left<" in text
    assert f'{{"action": "cancel", "run": "{run.id}"}}' in text
    assert 'value="0.2985' in text


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({}, "starting"),
        ({"phase": {"what": "download", "done": 4, "total": 10, "unit": "bytes"}}, "downloading"),
        ({"phase": {"what": "cache", "done": 0, "total": 0, "unit": "images"}}, "preparing the images"),
        ({"step": 5, "total_steps": 10, "steps_per_epoch": 10, "cancel_requested": True}, "stopping at the next step"),
    ],
)
def test_what_a_running_run_does(site: Client, add_run: Any, columns: dict[str, Any], words: str) -> None:
    add_run("CNN", status="running", **columns)
    assert words in rows_of(site.get("/runs").text)[0]


def test_queued_runs_say_when_their_turn_comes(site: Client, add_run: Any) -> None:
    add_run("now", status="running", model="fc", seconds_left=27.0, updated_at="2999-01-01T00:00:00.000Z")
    add_run("second", status="queued", learning_rate=0.1)
    add_run("third", status="queued", learning_rate=0.2)
    third, second, _running = rows_of(site.get("/runs").text)
    assert "next, in about 27 s" in second
    assert "waiting, 1 before it" in third


def test_a_failed_run_says_why_and_what_to_do(site: Client, add_run: Any) -> None:
    error = {
        "error": "NonFiniteLoss",
        "message": "The loss became NaN in epoch 1.",
        "advice": "Lower the learning rate.",
    }
    run = add_run("CNN", status="failed", error=error, started_at="2026-03-01T10:00:00.000Z")
    text = site.get("/runs").text
    assert "<b>Loss became NaN.</b> The loss became NaN in epoch 1. Lower the learning rate." in text
    assert f'{{"action": "resume", "run": "{run.id}"}}' in text
    assert f'href="/runs/{run.id}#log"' in text
    assert "none: no epoch was completed" in text
    assert "/datasets#import" not in text


def test_a_missing_data_set_leads_to_the_import(site: Client, add_run: Any) -> None:
    add_run("LeNet", status="failed", error={"error": "DatasetMissing", "message": "Not here.", "advice": "Import it."})
    assert 'href="/datasets#import"' in site.get("/runs").text


def test_a_run_cancelled_in_the_queue(site: Client, add_run: Any) -> None:
    add_run("VGG", status="cancelled")
    assert "cancelled while waiting" in rows_of(site.get("/runs").text)[0]


def test_names_are_escaped(site: Client, add_run: Any) -> None:
    add_run(
        "<script>alert(1)</script>",
        tags=['"><u>'],
        error={"error": "x", "message": "<i>", "advice": ""},
        status="failed",
    )
    text = site.get("/runs").text
    assert "<script>alert" not in text
    assert '"><u>' not in text
    assert "<i>" not in text


# Repeats ----------------------------------------------------------------------------------------------------------------


def repeat(add_run: Any, correct: list[int], **values: Any) -> list[Run]:
    return [
        add_run(f"CNN, 1 epoch, seed {seed}", correct=right, seed=seed, **values) for seed, right in enumerate(correct)
    ]


def test_repeats_fold_into_one_row_with_mean_and_t_interval(site: Client, add_run: Any) -> None:
    repeat(add_run, [9_546, 9_439, 9_379, 9_438, 9_439], tags=["part-1"])
    [row] = rows_of(site.get("/runs").text)
    assert row.startswith("5 repeats CNN, 1 epoch seeds 0 to 4 part-1 Add 3 more cnn")
    assert "1 of 1 94.48 93.73 to 95.23 95.46 seed 0" in row
    assert "50.0 s 6,000" in row


def test_a_group_opens_by_its_address(site: Client, add_run: Any) -> None:
    runs = repeat(add_run, [9_500, 9_400])
    closed = site.get("/runs").text
    assert 'aria-expanded="false"' in closed
    assert f"/runs?open={runs[0].group}" in closed
    opened = rows_of(site.get(f"/runs?open={runs[0].group}").text)
    assert [row.split(" 1 of 1")[0] for row in opened[1:]] == ["Finished seed 0", "Finished seed 1"]


def test_ticking_a_group_means_its_repeats(site: Client, add_run: Any) -> None:
    runs = repeat(add_run, [9_500, 9_400])
    assert f'value="{runs[0].id},{runs[1].id}"' in site.get("/runs").text


def test_one_seed_twice_is_no_group(site: Client, add_run: Any) -> None:
    add_run("a", seed=1)
    add_run("b", seed=1)
    assert names_of(site.get("/runs").text) == ["b", "a"]


def test_repeats_can_stand_apart(site: Client, add_run: Any) -> None:
    repeat(add_run, [9_500, 9_400])
    assert len(rows_of(site.get("/runs?apart=true").text)) == 2


def test_a_group_on_its_way(site: Client, add_run: Any) -> None:
    repeat(add_run, [9_500, 9_400])
    add_run("CNN, 1 epoch, seed 2", status="running", seed=2, step=5, total_steps=10, steps_per_epoch=10)
    add_run("CNN, 1 epoch, seed 3", status="failed", seed=3, error={"error": "x", "message": "m", "advice": "a"})
    text = site.get("/runs").text
    [row] = rows_of(text)
    assert "2 of 4 finished, 1 running, 1 failed" in row
    assert "94.50 88.15 to 100.00" in row
    assert 'value="0.875"' in text


def test_of_a_repeated_seed_the_newest_counts() -> None:
    def row(seed: int, accuracy: float, created_at: str) -> RunRow:
        run = Run(
            id=created_at,
            status="finished",
            config={},
            dataset="mnist",
            model="cnn",
            config_hash="",
            group="g",
            seed=seed,
            created_at=created_at,
            test_accuracy=accuracy,
            epochs_done=1,
        )
        return RunRow(run, (0.0, 1.0), [], None, None, "")

    group = GroupRow("g", [row(0, 0.8, "1"), row(0, 0.9, "3"), row(1, 0.7, "2")], is_open=False)
    assert sorted(group.accuracies) == [0.7, 0.9]
    assert group.best == BestAccuracy(0.9, "seed 0")


@pytest.mark.parametrize(
    ("seeds", "words"), [([0, 1, 2], "seeds 0 to 2"), ([0, 1], "seeds 0, 1"), ([3, 5, 9], "seeds 3, 5, 9")]
)
def test_seeds_in_words(site: Client, add_run: Any, seeds: list[int], words: str) -> None:
    for seed in seeds:
        add_run("CNN", seed=seed)
    assert words in rows_of(site.get("/runs").text)[0]


# The address ------------------------------------------------------------------------------------------------------------


def test_filters(site: Client, add_run: Any) -> None:
    add_run("a", model="fc", tags=["x"], learning_rate=0.1)
    add_run("b", status="failed", error={"error": "", "message": "", "advice": ""}, notes="odd one")
    add_run("c", dataset="digits")
    for query, names in {
        "model=fc": ["a"],
        "tag=x": ["a"],
        "status=failed": ["b"],
        "q=odd": ["b"],
        "dataset=digits": ["c"],
        "q=learning_rate%3D0.1": ["a"],
        "q=": ["c", "b", "a"],
        "model=": ["c", "b", "a"],
    }.items():
        assert names_of(site.get(f"/runs?{query}").text) == names, query


def test_counts_of_statuses_follow_the_other_filters(site: Client, add_run: Any) -> None:
    add_run("a", model="fc")
    add_run("b", model="fc", status="failed", error={"error": "", "message": "", "advice": ""}, learning_rate=0.1)
    add_run("c")
    text = joined(site.get("/runs?model=fc&status=failed").text)
    assert re.search(r"All&nbsp;<span class=\"count\">2<", text)
    assert re.search(r"Finished&nbsp;<span class=\"count\">1<", text)
    assert re.search(r"aria-current=\"true\">Failed&nbsp;<span class=\"count\">1<", text)


def test_sorting(site: Client, add_run: Any) -> None:
    add_run("b", correct=9_000)
    add_run("a", correct=9_900, learning_rate=0.1)
    add_run("c", status="queued", learning_rate=0.2)
    assert names_of(site.get("/runs?sort=name").text) == ["a", "b", "c"]
    text = site.get("/runs?sort=-test_accuracy").text
    assert names_of(text) == ["a", "b", "c"]
    assert 'aria-sort="descending"' in text


def test_a_column_sorts_both_ways_and_then_as_at_first() -> None:
    def urls(sort: str) -> str:
        page = RunsPage(RunsQuery(sort=sort, q="x"), None, [], {}, True, 0)  # type: ignore[arg-type]
        [accuracy] = columns_of(["test_accuracy"])
        return page.sort_url(accuracy) + " " + page.sort_url(page.name_column)

    assert urls("-created_at") == "/runs?q=x&sort=-test_accuracy /runs?q=x&sort=name"
    assert urls("-test_accuracy") == "/runs?q=x&sort=test_accuracy /runs?q=x&sort=name"
    assert urls("test_accuracy") == "/runs?q=x /runs?q=x&sort=name"


def test_addresses_hold_only_what_differs() -> None:
    query = RunsQuery(q="a b", page=3, open=["g"], archived=True)
    assert query.url() == "/runs?q=a+b&archived=true&open=g&page=3"
    assert query.url(status="failed") == "/runs?q=a+b&status=failed&archived=true"
    assert RunsQuery().url() == "/runs"


@pytest.mark.parametrize("query", ["sort=shoe", "status=lost", "page=0", "page=x"])
def test_an_address_that_means_nothing_is_refused_with_words(site: Client, query: str) -> None:
    answer = site.get(f"/runs?{query}")
    assert answer.status_code == 422
    assert "Not accepted" in answer.text


@pytest.mark.slow
def test_pages_of_a_hundred_rows(site: Client, add_run: Any) -> None:
    for number in range(PAGE_SIZE + 1):
        add_run(f"run {number}", learning_rate=0.001 * (number + 1))
    first = site.get("/runs").text
    assert len(rows_of(first)) == PAGE_SIZE
    assert "Rows 1 to 100 of 101" in first
    assert 'rel="next"' in first
    second = site.get("/runs?page=2").text
    assert names_of(second) == ["run 0"]
    assert "Rows 101 to 101 of 101" in second
    assert 'rel="prev"' in second
    assert "There are no runs on this page." in site.get("/runs?page=3").text


def test_new_runs_wait_behind_a_line(site: Client, add_run: Any) -> None:
    old = add_run("old")
    assert f'name="until" value="{old.created_at}" data-poll' in site.get("/runs").text
    add_run("new", learning_rate=0.1)
    text = site.get(f"/runs?until={old.created_at}").text
    assert names_of(text) == ["old"]
    assert "1 new run" in text
    assert names_of(site.get("/runs").text) == ["new", "old"]


# Actions ----------------------------------------------------------------------------------------------------------------


def act(site: Client, action: str, *runs: Run, **more: str) -> Any:
    data = {"action": action, "run": [run.id for run in runs], **more}
    return site.post("/runs/selected", data=data, headers={"HX-Request": "true", "HX-Target": "div#toasts"})


def test_archive_and_undo(site: Client, add_run: Any) -> None:
    runs = [add_run("a"), add_run("b", learning_rate=0.1)]
    answer = act(site, "archive", *runs)
    assert answer.status_code == 200
    assert answer.headers["HX-Trigger"] == "poll-now"
    assert "2 runs archived" in answer.text
    assert 'name="action" value="unarchive"' in answer.text
    assert names_of(site.get("/runs").text) == []
    fields = re.findall(r'name="(\w+)" value="([^"]*)"', answer.text)
    site.post("/runs/selected", data={"action": "unarchive", "run": [value for name, value in fields if name == "run"]})
    assert names_of(site.get("/runs").text) == ["b", "a"]


def test_delete_leaves_running_runs_alone_and_says_so(site: Client, add_run: Any) -> None:
    gone, running = add_run("gone"), add_run("running", status="running", learning_rate=0.1)
    answer = act(site, "delete", gone, running)
    assert answer.status_code == 200
    assert "1 run deleted" in answer.text
    assert "1 run unchanged: The run is running." in answer.text
    assert names_of(site.get("/runs").text) == ["running"]
    refused = act(site, "delete", running)
    assert refused.status_code == 409
    assert "Cancel it first" in refused.text
    assert 'class="toast"' in refused.text


def test_tags_come_and_go(site: Client, add_run: Any) -> None:
    run = add_run("a", tags=["old"])
    assert "1 run tagged new" in act(site, "tag", run, tag=" new ").text
    assert names_of(site.get("/runs?tag=new").text) == ["a"] == names_of(site.get("/runs?tag=old").text)
    act(site, "untag", run, tag="old")
    assert names_of(site.get("/runs?tag=old").text) == []
    assert act(site, "tag", run, tag=" ").status_code == 422


def test_cancel_and_resume(site: Client, add_run: Any) -> None:
    run = add_run("a", status="queued")
    assert "being cancelled" in act(site, "cancel", run).text
    assert "Cancelled" in rows_of(site.get("/runs").text)[0]
    assert "in the queue again" in act(site, "resume", run).text
    assert act(site, "resume", run).status_code == 409


def test_a_group_is_sent_as_one_value(site: Client, add_run: Any) -> None:
    first, second = repeat(add_run, [9_500, 9_400])
    answer = site.post("/runs/selected", data={"action": "archive", "run": [f"{first.id},{second.id}", first.id]})
    assert (answer.status_code, answer.headers["Location"]) == (303, "/runs")  # without htmx: back to the table
    assert names_of(site.get("/runs").text) == []


def test_unknown_runs_and_actions(site: Client) -> None:
    assert site.post("/runs/selected", data={"action": "archive", "run": "nothing000"}).status_code == 404
    assert site.post("/runs/selected", data={"action": "paint", "run": "x"}).status_code == 422
    assert site.post("/runs/selected", data={"action": "archive"}).status_code == 422


def test_other_sites_can_do_nothing(site: Client, add_run: Any) -> None:
    run = add_run("a")
    data = {"action": "delete", "run": run.id}
    assert site.post("/runs/selected", data=data, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert names_of(site.get("/runs").text) == ["a"]


def test_more_runs_than_one_action_takes_are_refused(
    site: Client, add_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs_page, "MOST_AT_ONCE", 1)
    runs = [add_run("a"), add_run("b", learning_rate=0.1)]
    answer = act(site, "archive", *runs)
    assert answer.status_code == 422
    assert "One action takes at most 1 runs; you chose 2." in answer.text
    refused = site.get("/runs/matching", headers={"Accept": "application/json"})
    assert refused.status_code == 422
    assert refused.json()["detail"] == "2 runs match; one action takes at most 1. Narrow the search."


@pytest.mark.slow
def test_all_that_match_are_found_over_all_pages(site: Client, add_run: Any) -> None:
    runs = [add_run(f"run {number}", learning_rate=0.001 * (number + 1)) for number in range(PAGE_SIZE + 5)]
    add_run("other", model="fc")
    found = site.get("/runs/matching?q=model=cnn&page=2").json()
    assert found == [run.id for run in reversed(runs)]
    text = site.get("/runs?q=model=cnn").text
    assert f'data-matching="{PAGE_SIZE + 5}"' in text
    assert "data-all-matching" in text


# Searching --------------------------------------------------------------------------------------------------------------


def test_a_search_by_expression(site: Client, add_run: Any) -> None:
    add_run("a", correct=9_700, tags=["final"])
    add_run("b", correct=9_900, learning_rate=0.1)
    add_run("c", correct=9_950, tags=["final"], learning_rate=0.2)
    text = site.get("/runs", params={"q": "test_accuracy > 98% and tag:final"}).text
    assert names_of(text) == ["c"]
    assert "1 run matches" in text


def test_a_search_that_cannot_be_read_points_at_the_character(site: Client, add_run: Any) -> None:
    add_run("a")
    answer = site.get("/runs", params={"q": "model=cnn and lerning_rate=<b>"})
    assert answer.status_code == 422
    assert "Character 15: There is no field lerning_rate. Did you mean learning_rate?" in answer.text
    caret = re.search(r'<pre class="caret"[^>]*>(.*?)</pre>', answer.text, re.DOTALL)
    assert caret is not None
    assert caret[1] == "model=cnn and lerning_rate=&lt;b&gt;\n" + " " * 14 + "^"
    assert 'aria-invalid="true"' in answer.text
    assert "The search could not run" in answer.text
    assert names_of(answer.text) == []
    assert 'value="model=cnn and lerning_rate=&lt;b&gt;"' in answer.text


def test_while_typing_only_the_complaint_goes_into_the_page(site: Client, add_run: Any) -> None:
    add_run("a")
    answer = site.get("/runs", params={"q": "model="}, headers={"HX-Request": "true"})
    assert answer.status_code == 200
    assert answer.headers["HX-Retarget"] == answer.headers["HX-Reselect"] == "#search-problem"
    assert answer.headers["HX-Push-Url"] == "false"
    good = site.get("/runs", params={"q": "model=cnn"}, headers={"HX-Request": "true"})
    assert "HX-Retarget" not in good.headers


def test_a_mean_of_the_repeats_that_match_is_named(site: Client, add_run: Any) -> None:
    repeat(add_run, [9_500, 9_400, 9_900])
    words = "Only repeats that match the filters"
    assert words in site.get("/runs?q=test_accuracy>94%25").text
    assert words not in site.get("/runs").text
    assert words not in site.get("/runs?q=test_accuracy>98%25").text


def test_a_caret_far_to_the_right_stays_in_sight() -> None:
    text = "x " * 35 + "shoe=1"
    with pytest.raises(SearchError) as caught:
        condition(text)
    page = RunsPage(RunsQuery(q=text), None, [], {}, True, 0, caught.value)  # type: ignore[arg-type]
    shown, caret = page.pointed.split("\n")
    assert shown[caret.index("^") :] == "shoe=1"
    assert shown.startswith("…")


# Columns ----------------------------------------------------------------------------------------------------------------


def headings_of(html: str) -> list[str]:
    head = re.search(r"<thead>.*?</thead>", html, re.DOTALL)
    assert head is not None
    return [" ".join(re.sub(r"<[^>]+>", " ", cell).split()) for cell in re.findall(r"<th.*?</th>", head[0], re.DOTALL)]


def test_columns_by_the_address(site: Client, add_run: Any) -> None:
    add_run("CNN", correct=9_780, learning_rate=0.05, tags=["x", "y"], test_loss=0.125, optimizer="adam")
    text = site.get("/runs?columns=learning_rate,momentum,test_loss&columns=tag").text
    assert headings_of(text)[1:] == ["Status", "Name", "Learning rate", "Momentum", "Test loss", "Tags"]
    assert rows_of(text)[0] == "Finished CNN x y 0.05 0.125 x, y"
    assert 'name="columns" value="learning_rate,momentum,test_loss,tag"' in text
    assert "sort=learning_rate&amp;columns=learning_rate%2Cmomentum%2Ctest_loss%2Ctag" in text
    usual = site.get("/runs").text
    assert [words.split(",")[0] for words in headings_of(usual)[3:]] == [
        "Model",
        "Epochs",
        "Test accuracy",
        "Best",
        "Training loss",
        "Time",
        "Images/s",
    ]
    assert "columns=" not in re.sub(r"<dialog.*", "", usual, flags=re.DOTALL)


def test_a_failed_run_spans_the_chosen_columns(site: Client, add_run: Any) -> None:
    add_run("CNN", status="failed", error={"error": "x", "message": "m", "advice": "a"})
    assert 'colspan="5"' in site.get("/runs?columns=seed,notes").text
    assert 'colspan="10"' in site.get("/runs").text


def test_columns_of_repeats(site: Client, add_run: Any) -> None:
    repeat(add_run, [9_500, 9_400], learning_rate=0.05, test_loss=0.5)
    [row] = rows_of(site.get("/runs?columns=learning_rate,seed,test_correct,test_loss").text)
    assert row.endswith("0.05 2 values mean 9,450 0.5")


def test_every_field_can_be_a_column_and_sorted_by(site: Client, add_run: Any) -> None:
    repeat(add_run, [9_500, 9_400])
    add_run("a", learning_rate=0.5)
    for name in fields():
        column = "" if name in ("status", "name") else f"columns={name}"
        answer = site.get(f"/runs?{column}" + ("" if name == "tag" else f"&sort=-{name}"))
        assert answer.status_code == 200, name
        assert len(rows_of(answer.text)) == 2, name


@pytest.mark.parametrize("query", ["columns=shoe", "columns=" + ",".join(fields()), "sort=tag"])
def test_columns_that_cannot_be_shown(site: Client, query: str) -> None:
    assert site.get(f"/runs?{query}").status_code == 422


def test_clearing_the_filters_keeps_the_columns(site: Client, add_run: Any) -> None:
    add_run("CNN")
    assert 'href="/runs?columns=seed" hx-get="/runs?columns=seed">Clear filters' in joined(
        site.get("/runs?columns=seed&q=zz").text
    )


# How much is read -------------------------------------------------------------------------------------------------------


@pytest.fixture
def statements(site: Client, site_app: Any) -> Iterator[list[tuple[str, int]]]:
    """Every statement that the server sends to the database, with the number of rows of its answer."""
    seen: list[tuple[str, int]] = []

    def note(_connection: Any, cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> None:
        counted = f"SELECT count(*) FROM ({statement})" if statement.startswith("SELECT") else ""
        rows = cursor.connection.execute(counted, parameters).fetchone()[0] if counted else 0
        seen.append((statement, rows))

    engine = site_app.state.runoff.engine
    event.listen(engine, "after_cursor_execute", note)
    yield seen
    event.remove(engine, "after_cursor_execute", note)


def add_histories(site_app: Any, runs: list[Run], num_epochs: int) -> None:
    with writing(site_app.state.runoff.engine) as session:
        for run in runs:
            row = session.get_one(Run, run.id)
            row.epochs_done = num_epochs
            session.add(row)
            for epoch in range(1, num_epochs + 1):
                session.add(
                    Epoch(
                        run_id=run.id,
                        epoch=epoch,
                        step=epoch,
                        attempt=1,
                        train_loss=1 / epoch,
                        train_accuracy=0.5,
                        test_loss=0.5,
                        test_accuracy=0.5,
                        test_correct=1,
                        test_total=2,
                        learning_rate=0.01,
                        seconds=1.0,
                        evaluation_seconds=1.0,
                        images_per_second=1.0,
                        ended_at=run.created_at,
                    )
                )
        session.commit()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("address", "epochs_a_run"),
    [("/runs", 0), ("/runs?apart=true", 1), ("/runs?q=seed<9000+and+cnn", 0), ("/api/v1/runs?limit=1000", 0)],
)
def test_lists_take_as_many_statements_for_many_runs_as_for_few(
    site: Client, site_app: Any, add_run: Any, statements: list[tuple[str, int]], address: str, epochs_a_run: int
) -> None:
    def asked() -> tuple[int, int]:
        statements.clear()
        run_table._cache.clear()
        assert site.get(address).status_code == 200
        return len(statements), sum(
            rows for statement, rows in statements if "FROM epoch" in statement or "JOIN epoch" in statement
        )

    def add(count: int) -> None:
        runs = [
            add_run(f"CNN, seed {seed}", seed=seed, learning_rate=rate) for rate in (0.1, 0.2) for seed in range(count)
        ]
        add_histories(site_app, runs, num_epochs=100)

    add(2)
    few, epochs_of_few = asked()
    add(12)
    many, epochs_of_many = asked()
    assert many == few <= 12
    assert (epochs_of_few, epochs_of_many) == (
        4 * epochs_a_run,
        28 * epochs_a_run,
    )  # one row a run: its losses together


def test_a_sparkline_needs_only_its_points(site: Client, site_app: Any, add_run: Any) -> None:
    run = add_run("CNN", epochs=1000)
    add_histories(site_app, [run], num_epochs=1000)
    state = site_app.state.runoff
    with reading(state.engine) as session:
        [row] = run_table.load_table(session, state.settings.runs, RunFilter()).rows
    assert isinstance(row, RunRow)
    assert len(row.losses) == SPARK_POINTS
    assert (row.losses[0], row.losses[-1]) == (1.0, 1 / 1000)
    assert row.losses == sorted(row.losses, reverse=True)


def test_rows_that_did_not_change_are_neither_read_nor_drawn_again(
    site: Client, add_run: Any, statements: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    repeat(add_run, [9_500, 9_400])
    run = add_run("CNN", learning_rate=0.5, tags=["x"])
    add_run("now", status="running", learning_rate=0.7, step=5, total_steps=10, steps_per_epoch=10)
    before = site.get("/runs").text

    def read() -> int:
        return sum(rows for statement, rows in statements if "run.config" in statement)

    statements.clear()
    drawn: list[Any] = []
    real = runs_view._draw

    def draw(row: Any, *arguments: Any) -> Any:
        drawn.append(row)
        return real(row, *arguments)

    monkeypatch.setattr(runs_view, "_draw", draw)
    assert site.get("/runs").text == before
    assert read() == 1  # only the running one
    assert [row.has_ended for row in drawn] == [False]
    drawn.clear()
    site.patch(f"/api/v1/runs/{run.id}", json={"tags": ["y"]})
    statements.clear()
    assert "?tag=y" in site.get("/runs").text
    assert read() == 2
    assert sorted(row.has_ended for row in drawn) == [False, True]


@pytest.mark.slow
def test_no_row_is_stale_whatever_happened(site: Client, site_app: Any, add_run: Any) -> None:
    """Each page as it is with the rows kept so far, and as it is drawn from nothing."""
    state = site_app.state.runoff
    group = repeat(add_run, [9_500, 9_400, 9_300])
    alone = add_run("CNN", learning_rate=0.5, tags=["x"])
    failed = add_run("broken", "failed", learning_rate=0.6, error={"error": "E", "message": "m", "advice": "a"})
    name = group[0].group
    addresses = [
        "/runs",
        "/runs?apart=true",
        f"/runs?open={name}",
        "/runs?sort=test_accuracy",
        "/runs?status=finished",
        "/runs?columns=notes,seed,test_loss",
        "/runs?q=test_accuracy>94%25",
        "/runs?archived=true",
        "/runs?tag=x",
    ]

    def look(happened: str) -> None:
        kept = [site.get(address).text for address in addresses]
        for address, text in zip(addresses, kept, strict=True):
            run_table._cache.clear()
            assert site.get(address).text == text, (happened, address)

    def change(run: Run, **values: Any) -> None:
        site.patch(f"/api/v1/runs/{run.id}", json=values).raise_for_status()

    look("at first")
    for run in (alone, group[1]):
        for values in (
            {"name": "other"},
            {"tags": ["x", "y"]},
            {"notes": "n"},
            {"archived": True},
            {"archived": False},
        ):
            change(run, **values)
            look(f"{run.name}: {values}")
    for action in ("resume", "cancel", "resume"):
        site.post(f"/api/v1/runs/{failed.id}/{action}").raise_for_status()
        look(action)
    add_run("low", correct=1_000, learning_rate=0.9)  # moves the scale of the drawings
    look("a new scale")
    site.delete(f"/api/v1/runs/{group[2].id}").raise_for_status()
    look("deleted")
    state.indexer.rebuild()
    look("read anew from the folders")


def test_two_who_ask_at_once_get_each_row_once(
    site: Client, site_app: Any, add_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    repeat(add_run, [9_500, 9_400])
    add_run("CNN", learning_rate=0.5)
    state = site_app.state.runoff
    both, make = Barrier(2, timeout=30), run_table._make_rows

    def make_together(*arguments: Any) -> dict[str, RunRow]:
        both.wait()  # neither has found a row that the other made
        return make(*arguments)

    monkeypatch.setattr(run_table, "_make_rows", make_together)

    def ask(_number: int) -> list[list[str]]:
        with reading(state.engine) as session:
            return [row.ids for row in run_table.load_table(session, state.settings.runs, RunFilter()).rows]

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(ask, range(2))
    assert first == second == ask(0)
    assert [len(ids) for ids in first] == [1, 2]


def test_only_the_rows_asked_for_last_are_kept(site: Client, add_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_table, "KEPT_RUNS", 2)
    for rate in (0.1, 0.2, 0.3):
        add_run("CNN", learning_rate=rate)
    before = site.get("/runs").text
    assert len(run_table._cache._rows) == 2
    assert site.get("/runs").text == before


def test_a_group_that_grows_keeps_no_old_rows(site: Client, add_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each repeat that is added makes another row of the group, with all its runs."""
    monkeypatch.setattr(run_table, "KEPT_RUNS", 12)
    for seed in range(10):
        add_run("CNN", seed=seed)
        site.get("/runs")
    kept = [len(runs) for _folder, _is_open, runs in run_table._cache._rows]
    assert kept[-1] == 10
    assert sum(kept) == run_table._cache._num_runs <= 12
    gc.collect()
    assert len(runs_view._html) <= len(kept) + 1


# Defects ------------------------------------------------------------------------------------------------------------------


DEFECT = {"epoch": 1, "counted": 9_500, "num_images": 10_000, "reported": 9_700}
DEFECT_WORDS = (
    "Defect of this run: the stored predictions of epoch 1 give 9,500 of 10,000 right, but the log says 9,700."
)


def test_a_defect_of_the_answers_is_said_in_the_table_and_the_api(site: Client, add_run: Any) -> None:
    run = add_run("CNN", correct=9_500, defect=DEFECT)
    good = add_run("good", learning_rate=0.5)
    text = site.get("/runs").text
    assert len(re.findall('class="whyrow" id="defect-', text)) == 1
    assert DEFECT_WORDS in text
    assert site.get(f"/api/v1/runs/{run.id}").json()["defect"].startswith(DEFECT_WORDS)
    assert site.get(f"/api/v1/runs/{good.id}").json()["defect"] == ""
    assert [bool(one["defect"]) for one in site.get("/api/v1/runs").json()["runs"]] == [False, True]
    assert site.get(f"/runs/{run.id}").text.count(DEFECT_WORDS) == 1


def test_a_folded_group_counts_its_defects(site: Client, add_run: Any) -> None:
    runs = repeat(add_run, [9_500, 9_400])
    assert "a defect" not in site.get("/runs").text
    add_run("CNN, seed 2", seed=2, defect=DEFECT)
    text = site.get("/runs").text
    assert "1 repeat has a defect" in text
    assert DEFECT_WORDS not in text
    assert DEFECT_WORDS in site.get(f"/runs?open={runs[0].group}").text
