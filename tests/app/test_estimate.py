"""How long runs will take, from earlier runs like them."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from app.runs.estimate import Estimate, estimate
from app.store.database import reading
from trainer.config import RunConfig, parse_config

SPEED = 12.0 / (2 * 60_000)  # seconds per image of the run that ``measured`` adds


@pytest.fixture
def measured(add_run: Any) -> None:
    """A run of two epochs over 60,000 images, which took 10 s of training and 2 s of evaluation."""
    add_run(epochs=2, evaluation_seconds=2.0)


def config_of(**fields: Any) -> RunConfig:
    return parse_config({"dataset": "mnist", "model": "cnn", "epochs": 3, **fields})[0]


def estimated(app: FastAPI, *configs: RunConfig) -> Estimate:
    state = app.state.runoff
    with reading(state.engine) as session:
        return estimate(session, state.settings.home, configs)


def test_without_runs_like_it_nothing_is_known(site: TestClient, site_app: FastAPI) -> None:
    assert estimated(site_app, config_of()) == Estimate(None, None, 0)
    assert estimated(site_app) == Estimate(None, None, 0)


@pytest.mark.usefixtures("measured")
def test_time_grows_with_epochs_and_images(site_app: FastAPI) -> None:
    whole = estimated(site_app, config_of())
    assert whole.seconds == pytest.approx(3 * 60_000 * SPEED)
    assert whole.num_epochs == 2
    part = estimated(site_app, config_of(train_fraction=0.5, validation_fraction=0.2))
    assert part.seconds == pytest.approx(3 * 24_000 * SPEED)


@pytest.mark.usefixtures("measured")
def test_several_runs_add_up(site_app: FastAPI) -> None:
    both = estimated(site_app, config_of(), config_of(epochs=1, seed=1))
    assert both.seconds == pytest.approx(4 * 60_000 * SPEED)
    assert both.each == pytest.approx(2 * 60_000 * SPEED)
    assert both.num_epochs == 2


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize("other", [{"width": 12}, {"model": "fc"}, {"dataset": "fashion-mnist"}])
def test_another_net_width_or_data_set_is_not_like_it(site_app: FastAPI, other: dict[str, Any]) -> None:
    assert estimated(site_app, config_of(**other)).seconds is None
    assert estimated(site_app, config_of(), config_of(**other)).seconds is None


def test_the_newest_runs_count(site_app: FastAPI, add_run: Any) -> None:
    add_run(train_seconds=1e6)
    for seed in range(20):
        add_run(epochs=1, seed=seed, train_seconds=6.0)
    found = estimated(site_app, config_of(epochs=1))
    assert found.seconds == pytest.approx(6.0)
    assert found.num_epochs == 20
