"""The form of a new run as a page: where it begins, what each change answers, what starts."""

from __future__ import annotations

import html
import re
from typing import Any

import pytest
from fastapi import FastAPI
from sqlmodel import select

from app.store.database import reading
from app.store.tables import Run
from tests.app.page_answers import FakeExecutor

Client = Any


@pytest.fixture(autouse=True)
def executor(site: Client, site_app: FastAPI) -> None:
    site_app.state.runoff.executor = FakeExecutor()


def form_of(text: str) -> dict[str, Any]:
    """What a browser would send of the form in ``text`` as it stands, several values of a name in a list."""
    data: dict[str, Any] = {}
    for tag in re.findall(r"<input [^>]*>", text):
        fields = dict(re.findall(r'([\w-]+)="([^"]*)"', tag))
        chosen = fields.get("type") not in ("radio", "checkbox") or " checked" in tag
        if fields.get("name") and chosen and " disabled" not in tag:
            data.setdefault(fields["name"], []).append(html.unescape(fields.get("value", "on")))
    for name, options in re.findall(r'<select id="[^"]*" name="(\w+)".*?>(.*?)</select>', text, flags=re.DOTALL):
        found = re.search(r'<option value="([^"]*)" selected', options) or re.search(
            r'<option value="([^"]*)"', options
        )
        data[name] = [found[1]] if found else []
    return data


def words_of(text: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())


def summary_of(text: str) -> str:
    found = re.search(r'<section class="card" id="summary".*?</section>', text, flags=re.DOTALL)
    assert found
    return words_of(found[0])


def runs_of(app: FastAPI) -> list[Run]:
    with reading(app.state.runoff.engine) as session:
        return list(session.exec(select(Run).order_by(Run.seed)).all())  # type: ignore[arg-type]


def check(site: Client, **changes: Any) -> str:
    """The form after a change, as htmx asks for it."""
    data = form_of(site.get("/runs/new").text) | changes
    answer = site.post("/runs/new?check=1", data=data)
    assert answer.status_code == 200
    return str(answer.text)


def test_the_first_look(site: Client) -> None:
    text = site.get("/runs/new").text
    assert summary_of(text).startswith("This will start 1 run CNN on mnist, 1 epoch.")
    assert "unknown: no similar run has finished here yet" in summary_of(text)
    assert "will be downloaded" in text
    assert "6,442" in text
    assert "runoff train --preset mnist-cnn" in text
    assert "style=" not in text
    assert "<script>" not in text
    assert "onclick" not in text


def test_it_begins_from_the_address(site: Client, add_run: Any) -> None:
    assert form_of(site.get("/runs/new?preset=cifar10-lenet&epochs=3").text)["epochs"] == ["3"]
    run = add_run("CNN seed 0", epochs=2, learning_rate=0.02, tags=["part-1"])
    data = form_of(site.get(f"/runs/new?from={run.id}&repeats=4&seed=5").text)
    assert (data["learning_rate"], data["repeats"], data["seed"]) == (["0.02"], ["4"], ["5"])
    assert (data["name"], data["tags"], data["from_run"]) == (["CNN seed 0"], ["part-1"], [run.id])


def test_an_unknown_run_is_named(site: Client) -> None:
    answer = site.get("/runs/new?from=zzzzzzzzzz")
    assert answer.status_code == 404
    assert "zzzzzzzzzz" in answer.text


def test_a_change_counts_and_draws(site: Client) -> None:
    text = check(site, learning_rate="0.003, 0.01, 0.03", repeats="2", schedule="cosine", epochs="5")
    assert summary_of(text).startswith("This will start 6 runs 3 learning rates × 2 seeds, cosine, 5 epochs each.")
    assert "The best of 3 will look too good" in text
    assert "Start 6 runs anyway" in words_of(text)
    assert text.count('<polyline class="ln') == 6  # wide and narrow
    assert "938 steps per epoch" in text
    assert "Seeds 0 and 1 will be used." in text


def test_errors_stand_at_the_field_and_in_the_summary(site: Client) -> None:
    text = check(site, batch_size="0", learning_rate="0.01, fast")
    assert "2 errors to fix" in summary_of(text)
    assert 'id="batch_size-error"' in text
    assert text.count("Must be at least 1. You typed 0.") == 2
    assert form_of(text)["learning_rate"] == ["0.01, fast"]
    assert 'id="same-as"' not in text


def test_advanced_opens_for_what_is_wrong_in_it(site: Client) -> None:
    assert '<details id="advanced">' in check(site)
    text = check(site, early_stopping_patience="3")
    assert '<details id="advanced" open>' in text
    assert "validation_fraction to 0.1" in text


def test_the_fix_of_a_warning_is_a_button(site: Client) -> None:
    data = form_of(site.get("/runs/new").text) | {"learning_rate": "0.01, 0.1", "fix": "validation_fraction=0.1"}
    answer = site.post("/runs/new?check=1", data=data)
    assert form_of(answer.text)["validation_fraction"] == ["0.1"]
    assert "look too good" not in answer.text
    assert answer.headers["HX-Reswap"] == "outerHTML"


def test_another_preset_begins_anew(site: Client) -> None:
    data = form_of(site.get("/runs/new").text) | {"preset": "cifar10-lenet", "epochs": "7"}
    answer = site.post("/runs/new", data=data)  # without JavaScript: chosen, then sent; nothing may start yet
    assert answer.status_code == 200
    sent = form_of(answer.text)
    assert (sent["optimizer"], sent["epochs"], sent["loaded"]) == (["adam"], ["10"], ["preset:cifar10-lenet"])
    assert answer.headers["HX-Replace-Url"] == "/runs/new?preset=cifar10-lenet"


def test_an_earlier_run_is_chosen_from_a_list(site: Client, add_run: Any) -> None:
    run = add_run("old one", epochs=4)
    text = check(site, preset="run")
    assert "old one" in text
    data = form_of(text) | {"from_run": run.id}
    answer = site.post("/runs/new?check=1", data=data)
    assert form_of(answer.text)["epochs"] == ["4"]
    assert answer.headers["HX-Replace-Url"] == f"/runs/new?from={run.id}"


def test_several_models_and_both_ways(site: Client) -> None:
    text = check(site, several=["model", "permute_pixels"], model=["fc", "cnn"])
    assert summary_of(text).startswith("This will start 4 runs 2 models × plain and permuted, 1 epoch each.")
    again = form_of(text)
    assert again["model"] == ["fc", "cnn"]
    assert set(again["several"]) == {"model", "permute_pixels"}


def test_momentum_keeps_its_text_while_it_does_not_apply(site: Client) -> None:
    text = check(site, optimizer="adam", momentum="0.9")
    assert form_of(text)["momentum"] == ["0.9"]
    assert re.search(r'id="momentum"[^>]* disabled', text)


def test_time_comes_from_earlier_runs(site: Client, add_run: Any) -> None:
    add_run("CNN", epochs=2)  # 10 s of training for two epochs
    assert "about 5 s" in summary_of(site.get("/runs/new").text)
    assert "unknown" in summary_of(check(site, width="12"))


def test_the_queue_is_told(site: Client, add_run: Any) -> None:
    assert "starts at once" in summary_of(site.get("/runs/new").text)
    add_run("waits", status="queued")
    assert "behind 1 run" in summary_of(site.get("/runs/new").text)


# Starting ------------------------------------------------------------------------------------------------------------


def send(site: Client, **changes: Any) -> Any:
    return site.post("/runs/new", data=form_of(site.get("/runs/new").text) | changes)


def test_one_run_leads_to_its_page(site: Client, site_app: FastAPI) -> None:
    answer = send(site, name="mine", tags="a, b", epochs="3")
    [run] = runs_of(site_app)
    assert (answer.status_code, answer.headers["Location"]) == (303, f"/runs/{run.id}")
    assert (run.name, run.tags, run.epochs, run.sweep) == ("mine", ["a", "b"], 3, None)


def test_several_runs_lead_to_their_sweep(site: Client, site_app: FastAPI) -> None:
    answer = send(site, learning_rate="0.01, 0.1", repeats="2")
    started = runs_of(site_app)
    assert len(started) == 4
    assert answer.headers["Location"] == f"/sweeps/{started[0].sweep}"


def test_nothing_starts_while_something_is_wrong(site: Client, site_app: FastAPI) -> None:
    answer = send(site, batch_size="0")
    assert answer.status_code == 422
    assert "1 error to fix" in answer.text
    assert runs_of(site_app) == []


def test_many_runs_need_a_tick(site: Client, site_app: FastAPI) -> None:
    answer = send(site, repeats="21")
    assert answer.status_code == 422
    assert "Tick the box to confirm that you want to start 21 runs." in answer.text
    assert runs_of(site_app) == []
    assert send(site, repeats="21", confirmed="20").status_code == 422
    assert send(site, repeats="21", confirmed="21").status_code == 303
    assert len(runs_of(site_app)) == 21
