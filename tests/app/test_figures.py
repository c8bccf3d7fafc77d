"""Every figure that the server sends is one that plotly accepts; the browser's plotly.js is the Python package's."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlencode

import plotly.graph_objects
import pytest
from fastapi import FastAPI
from plotly.offline import get_plotlyjs_version
from starlette.testclient import TestClient

from app.compare import curves
from app.draw.figures import Axis, RunCurve, accuracy_figure, plotly_json, step_figure
from app.routes.pages.compare_query import CompareQuery
from tests.app.run_folders import finish, new_run, say, started, steps
from trainer.run_folder import RunFolder

pytestmark = pytest.mark.slow

VENDOR = Path(__file__).resolve().parents[2] / "static" / "vendor"
PATHS = {"/runs/{run_id}/figures/{figure}.json", "/compare/figures/{figure}.json"}


@pytest.fixture
def index(site: TestClient, site_app: FastAPI) -> Callable[..., str]:
    """Make a run folder and read it into the index; the id of the run."""

    def make(fill: Callable[[RunFolder], Any], **fields: Any) -> str:
        state = site_app.state.runoff
        folder = new_run(state.settings.runs, **fields)
        fill(folder)
        state.indexer.tick()
        return folder.id

    return make


def check(site: TestClient, address: str) -> plotly.graph_objects.Figure:
    """The figure at an address. Raises ``ValueError`` where plotly knows no such trace, attribute or value."""
    answer = site.get(address)
    assert answer.status_code == 200, answer.text
    return plotly.graph_objects.Figure(answer.json())


def test_all_addresses_of_figures_are_checked_here(site_app: FastAPI) -> None:
    def paths(routes: Iterable[Any]) -> set[str]:
        return {str(path) for route in routes if "figure" in (path := getattr(route, "path", ""))}

    routers = [route for route in site_app.routes if not hasattr(route, "path")]
    nested = itertools.chain.from_iterable(router.original_router.routes for router in routers)  # type: ignore[attr-defined]
    assert paths(site_app.routes) | paths(nested) == PATHS


@pytest.mark.parametrize("name", ["accuracy", "loss"])
def test_figures_of_a_run(site: TestClient, index: Callable[..., str], name: str) -> None:
    for fill in (finish, lambda folder: say(folder, [started(), steps(1)]), lambda _folder: None):
        check(site, f"/runs/{index(fill)}/figures/{name}.json")
    validated = index(lambda folder: finish(folder), validation_fraction=0.1)
    assert len(check(site, f"/runs/{validated}/figures/{name}.json").data) > 0


@pytest.mark.parametrize("name", get_args(curves.FigureName))
@pytest.mark.parametrize("axis", get_args(Axis))
def test_figures_of_a_comparison(site: TestClient, index: Callable[..., str], name: str, axis: str) -> None:
    ids = [index(finish, model=model, seed=seed) for model in ("fc", "cnn") for seed in range(2)]
    fields = CompareQuery.model_fields
    choices = [get_args(fields["loss"].annotation), get_args(fields["over"].annotation), (0, 0.9)]
    for loss, over, smooth in itertools.product(*choices):
        query = {"run": ids, "x": axis, "loss": loss, "over": over, "smooth": smooth}
        figure = check(site, f"/compare/figures/{name}.json?{urlencode(query, doseq=True)}")
        assert len(figure.data) > 0


def test_a_figure_of_more_curves_than_can_be_detailed(site: TestClient, index: Callable[..., str]) -> None:
    ids = [index(finish, seed=seed) for seed in range(curves.MOST_DETAILED + 1)]
    for name in get_args(curves.FigureName):
        check(site, f"/compare/figures/{name}.json?{urlencode({'run': ids}, doseq=True)}")


def test_a_wrong_figure_would_be_refused() -> None:
    with pytest.raises(ValueError, match="linne"):
        plotly.graph_objects.Figure({"data": [{"type": "scatter", "linne": {"width": 2}}]})


def test_the_browser_has_the_plotly_js_of_the_python_package() -> None:
    first_lines = (VENDOR / "plotly-basic.min.js").read_text(encoding="utf-8")[:200]
    assert f"v{get_plotlyjs_version()}\n" in first_lines
    (row,) = (line.split() for line in (VENDOR / "VERSIONS").read_text().splitlines() if "plotly.js" in line)
    assert get_plotlyjs_version() in row


def test_server_and_trainer_do_not_import_plotly() -> None:
    code = (
        "import sys, app.server, app.main, app.cli, trainer.engine, trainer.runtime, trainer.host.describe, trainer.host.loop\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('plotly', 'sklearn')])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_loss_chart_without_losses_has_a_readable_axis() -> None:
    """That of a queued run, whose number of steps is not known yet, too."""
    for per_epoch, total in ((10, 30), (0, 0)):
        layout = plotly_json(step_figure([], [], RunCurve(0, "a", []), steps_per_epoch=per_epoch, total_steps=total))[
            "layout"
        ]
        assert layout["yaxis"]["range"] == [-2, 1]
        assert [tick for tick in layout["yaxis"]["tickvals"] if 0.01 <= tick <= 10] == [0.01, 0.1, 1, 10]
        assert layout["xaxis"]["range"][0] < layout["xaxis"]["range"][1]


def test_an_accuracy_chart_without_epochs_has_the_epochs_to_come() -> None:
    layout = plotly_json(accuracy_figure(RunCurve(0, "a", []), last_epoch=1))["layout"]
    assert (layout["xaxis"]["range"], layout["yaxis"]["range"]) == ([0.5, 1.5], [0, 100])


def test_a_single_loss_has_a_narrow_axis() -> None:
    figure = plotly_json(step_figure([1], [2.0], RunCurve(0, "a", []), steps_per_epoch=10, total_steps=30))
    low, high = figure["layout"]["yaxis"]["range"]
    assert high - low < 1
