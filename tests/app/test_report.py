"""What a comparison is taken away as: CSV with the same numbers, and a report that needs nothing else."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from app.compare import report
from app.errors import NotFound
from app.store.database import writing
from app.store.tables import Epoch, Run
from tests.app.page_answers import give_answers
from trainer.config import config_hash, group_hash, parse_config
from trainer.run_folder import write_json

LABELS = [0, 1, 2] * 100
RIGHT = list(LABELS)
HALF = [label if i < 150 else (label + 1) % 3 for i, label in enumerate(LABELS)]
PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==")
Ask = Callable[..., Any]


@pytest.fixture(autouse=True)
def pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "image_png", lambda *_all: PNG)


@pytest.fixture
def make(site: TestClient, site_app: FastAPI, add_run: Any) -> Callable[..., Run]:
    """A finished run with two epochs of answers."""

    def run(name: str, predicted: list[int], model: str = "cnn", **values: Any) -> Run:
        made: Run = add_run(name, **values)
        config, _warnings = parse_config({"dataset": "mnist", "model": model, **values})
        with writing(site_app.state.runoff.engine) as session:
            made.config, made.model = config.model_dump(), model
            made.group, made.config_hash = group_hash(config), config_hash(config)
            session.merge(made)
            session.commit()
        give_answers(site_app, made, LABELS, predicted, epochs=2)
        environment = {"device": "cpu", "torch": "2.99", "python": "3.11.7", "num_threads": 2, "precision": "float32"}
        write_json(site_app.state.runoff.settings.runs / made.id / "environment.json", environment)
        return made

    return run


@pytest.fixture
def two(make: Callable[..., Run]) -> list[Run]:
    return [make("CNN seed 0", RIGHT), make("=FC seed 0", HALF, model="fc")]


@pytest.fixture
def ask(site: TestClient) -> Ask:
    """Get a path below /api/v1/compare for some runs."""

    def get(path: str, runs: list[Run], **query: Any) -> Any:
        return site.get(f"/api/v1/compare{path}", params=[*(("run", run.id) for run in runs), *query.items()])

    return get


def rows_of(answer: Any) -> list[dict[str, str]]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"].startswith("text/csv")
    assert answer.headers["Content-Disposition"].startswith("attachment")
    return list(csv.DictReader(io.StringIO(answer.text)))


def test_pairs_as_csv_are_those_of_the_json(ask: Ask, two: list[Run]) -> None:
    (row,) = rows_of(ask("/pairs.csv", two, margin=0.02))
    (pair,) = ask("", two, margin=0.02).json()["pairs"]
    for name in (
        "a",
        "b",
        "num_images",
        "only_a_correct",
        "only_b_correct",
        "difference",
        "p_value",
        "agreement",
        "verdict",
    ):
        assert row[name] == str(pair[name])
    assert [float(row["low"]), float(row["high"])] == pair["interval"]
    assert float(row["kappa"]) == pair["kappa"]["value"]
    assert (row["margin"], row["level"]) == ("0.02", "0.95")
    assert row["b_name"] == "'=FC"  # no spreadsheet takes a name for a formula


def test_a_pair_that_can_not_be_compared_has_empty_cells(ask: Ask, two: list[Run], add_run: Any) -> None:
    waiting = add_run("waiting", status="queued")
    rows = rows_of(ask("/pairs.csv", [*two, waiting]))
    assert [row["verdict"] for row in rows] == ["a_better", "not_comparable", "not_comparable"]
    assert rows[1]["difference"] == rows[1]["p_value"] == rows[1]["level"] == ""


def test_epochs_of_all_runs_as_csv(ask: Ask, two: list[Run]) -> None:
    rows = rows_of(ask("/epochs.csv", two))
    assert [(row["run"], row["epoch"]) for row in rows] == [(run.id, epoch) for run in two for epoch in ("1", "2")]
    assert rows[1]["test_correct"] == "300"
    assert rows[3]["test_accuracy"] == "0.5"
    assert float(rows[1]["train_seconds"]) == 10.0


class Links(HTMLParser):
    """What a page would load: every address in it, and its scripts and inline styles."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.forbidden: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "iframe", "object", "base", "form"):
            self.forbidden.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data", "action"):
                self.addresses.append(value or "")
            if name == "style" or name.startswith("on"):
                self.forbidden.append(name)


def html_of(answer: Any) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.text)


def words_of(text: str) -> str:
    return " ".join(re.sub(r"<style>.*?</style>|<[^>]+>", " ", text, flags=re.DOTALL).split())


def test_the_report_needs_nothing_else(ask: Ask, two: list[Run]) -> None:
    answer = ask("/report", two)
    text = html_of(answer)
    links = Links()
    links.feed(text)
    assert links.forbidden == []
    assert all(address.startswith(("data:image/png;base64,", "#i-")) for address in links.addresses)
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    assert not re.search(r"url\(|@import", style)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert (
        answer.headers["Content-Security-Policy"] == f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'"
    )
    assert f"sha256-{digest}" in text.split("<title>")[0]  # as a file it forbids the same


def test_the_report_says_all(ask: Ask, two: list[Run]) -> None:
    text = html_of(ask("/report", two, margin=0.02, x="seconds", smooth=0.5, loss="log"))
    words = words_of(text)
    assert "CNN is better than =FC by 50.0 points." in words
    assert "after epoch 2, on the 300 test images of mnist" in words
    assert "p = 1.4 × 10⁻⁴⁵" in words
    assert "within ±2 points" in words
    assert "300 of 300" in words
    assert "150 of 300" in words
    assert "PyTorch 2.99, Python 3.11.7" in words
    assert "One factor differs, model" in words
    assert "dataset=mnist" in words
    assert "by seconds of training, smoothed (exponential, 0.5)" in words
    assert "24 of 150" in words
    assert text.count("<img class") == 24  # none that only the other run has right, none that both have wrong
    assert "Tango&#39;s score interval" in text
    for run in two:
        assert run.id in words
    assert len(re.findall(r"<polyline", text)) >= 6


def test_names_in_the_report_are_text(ask: Ask, make: Callable[..., Run]) -> None:
    runs = [make("<script>alert(1)</script>", RIGHT), make("<b>", HALF, model="fc")]
    text = html_of(ask("/report", runs))
    assert "<script" not in text
    assert "&lt;script&gt;" in text


@pytest.mark.parametrize(("names", "wall"), [(["0", "1", "2"], "wall"), (["cat", "automobile", "dog"], "wall named")])
def test_tiles_of_the_report_are_wide_enough_for_the_names(
    ask: Ask, two: list[Run], site_app: FastAPI, names: list[str], wall: str
) -> None:
    with writing(site_app.state.runoff.engine) as session:
        for run in two:
            run.class_names = names
            session.merge(run)
        session.commit()
    assert f'<div class="{wall}">' in html_of(ask("/report", two))


def test_the_pair_and_the_base_of_the_report(ask: Ask, two: list[Run], make: Callable[..., Run]) -> None:
    third = make("LeNet", HALF, model="lenet")
    words = words_of(html_of(ask("/report", [*two, third], pair=f"{third.id}.{two[1].id}")))
    assert words.startswith("Identical predictions.")
    assert "All pairs" in words
    assert "CNN is the best of 3 runs" in words
    words = words_of(html_of(ask("/report", [*two, third], base=third.id)))
    assert "Differences against LeNet" in words
    assert "p adjusted by Holm over 2 pairs" in words


def test_without_its_images_the_report_names_them(ask: Ask, two: list[Run], monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_all: Any) -> bytes:
        raise NotFound("gone")

    monkeypatch.setattr(report, "image_png", missing)
    text = html_of(ask("/report", two))
    assert "<img class" not in text
    assert "so only the numbers are shown" in words_of(text)


def test_a_report_of_runs_that_can_not_be_compared(ask: Ask, two: list[Run], add_run: Any) -> None:
    words = words_of(html_of(ask("/report", [two[0], add_run("waiting", status="queued")])))
    assert "waiting has no finished epoch" in words
    assert "Images that separate them" not in words


@pytest.mark.parametrize(
    ("query", "field"),
    [({"smooth": "2"}, "smooth"), ({"x": "years"}, "x"), ({"over": "all"}, "over"), ({"margin": "0"}, "margin")],
)
def test_what_a_report_can_not_show_is_refused(ask: Ask, two: list[Run], query: dict[str, str], field: str) -> None:
    answer = ask("/report", two, **query)
    assert answer.status_code == 422
    assert field in answer.text


def test_a_report_needs_two_runs_and_a_base_among_them(ask: Ask, two: list[Run]) -> None:
    assert "at least two runs" in ask("/report", two[:1]).text
    assert "base run is not among" in ask("/report", two, base="nothing").text


def test_answers_that_do_not_give_the_logged_count_are_in_the_report(
    ask: Ask, site_app: FastAPI, two: list[Run]
) -> None:
    with writing(site_app.state.runoff.engine) as session:
        epoch = session.get(Epoch, (two[0].id, 2))
        assert epoch
        epoch.test_correct = 299
        session.add(epoch)
        session.commit()
    assert "300 of 300 right, but the log says 299" in words_of(html_of(ask("/report", two)))
