"""What all pages share: numbers in words, addresses of static files, the frame, errors, and the rules of the templates."""

from __future__ import annotations

import hashlib
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markupsafe import Markup
from starlette.requests import Request

from app.draw.small import class_bars, scale_of, spark, strip
from app.web import templating
from app.web.problems import render_error
from tests.app.page_answers import joined

TEMPLATES = sorted(path.relative_to(templating.TEMPLATES).as_posix() for path in templating.TEMPLATES.rglob("*.html"))


# Drawings ---------------------------------------------------------------------------------------------------------------


def test_a_scale_has_round_ends_and_holds_all_intervals() -> None:
    scale = scale_of([(0.8276, 0.8421), (0.9749, 0.9807)])
    assert (scale.low, scale.high, scale.tick) == (82, 100, 90)
    assert scale.x(0.82) == 3
    assert scale.x(1.0) == 109


@pytest.mark.parametrize("intervals", [[], [(0.0, 0.0)], [(1.0, 1.0)], [(0.5, 0.5)], [(0.0, 1.0)], [(0.9781, 0.9782)]])
def test_every_scale_has_a_width_and_a_tick_inside(intervals: list[tuple[float, float]]) -> None:
    scale = scale_of(intervals)
    assert 0 <= scale.low < scale.tick < scale.high <= 100


def test_a_strip_stays_inside() -> None:
    drawn = strip(scale_of([(0.9, 0.95)]), 0.2, (0.1, 0.99), [0.5])
    places = [float(x) for x in re.findall(r'(?:[MH]|cx=")([\d.]+)', drawn)]
    assert len(places) >= 7
    assert all(3 <= x <= 109 for x in places)


def test_a_spark_needs_two_finite_values() -> None:
    assert spark([1.0]) == spark([1.0, float("nan")]) == ""
    drawn = Markup(spark([2.0, float("inf"), 1.0]))
    assert 'd="M2.0 2.0L84.0 18.0"' in drawn
    assert 'aria-label="training loss, from 2 to 1"' in drawn


def test_bars_of_no_images_and_long_names() -> None:
    assert class_bars([], [], "", are_named=True) == ""
    drawn = ET.fromstring(Markup(class_bars(["a long <b>"] * 10, [0] * 10, "images", are_named=True)))
    assert [bar.get("height") for bar in drawn.iter("rect")] == ["0.0"] * 10
    assert [text.text for text in drawn.iter("text")][:2] == ["0", "a lon…"]
    unnamed = ET.fromstring(Markup(class_bars(["a"] * 30, [1] * 30, "images", are_named=False)))
    assert list(unnamed.iter("text")) == []


# Static files -----------------------------------------------------------------------------------------------------------


def test_assets_carry_the_content_hash_and_are_kept_for_ever(site: Any) -> None:
    address = templating.asset("css/base.css")
    assert re.fullmatch(r"/static/[0-9a-f]{12}/css/base\.css", address)
    assert site.get(address).headers["Cache-Control"] == templating.IMMUTABLE
    for other in (
        "/static/css/base.css",
        "/static/000000000000/css/base.css",
    ):  # an old page after an upgrade still finds its file
        answer = site.get(other)
        assert (answer.status_code, answer.headers["Cache-Control"]) == (200, "no-cache")
    assert site.get("/static/nothing.css").status_code == 404


def test_vendored_files_are_those_of_the_list() -> None:
    vendor = templating.STATIC / "vendor"
    listed = [line.split() for line in (vendor / "VERSIONS").read_text().splitlines()[1:]]
    assert {name for name, *_rest in listed} == {path.name for path in vendor.glob("*.js")}
    for name, _package, _version, digest in listed:
        assert hashlib.sha256((vendor / name).read_bytes()).hexdigest() == digest, name


def test_modules_import_files_that_exist() -> None:
    for path in templating.STATIC.glob("*.js"):
        for name in re.findall(r'(?:from|import)\s+"\./([\w-]+\.js)"', path.read_text()):
            assert (templating.STATIC / name).is_file(), f"{path.name} imports {name}"


# The frame --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/runs", "/datasets", "/api"])
def test_every_page_has_its_frame(site: Any, path: str) -> None:
    answer = site.get(path)
    assert answer.status_code == 200
    assert f'href="{path}" aria-current="page"' in answer.text
    for part in ('<html lang="en">', 'href="#main">Skip to content', 'id="main"', 'id="toasts"', "theme.js"):
        assert part in answer.text
    assert "default-src 'self'" in answer.headers["Content-Security-Policy"]


def test_the_patterns_page_is_for_developers(site: Any) -> None:
    assert site.get("/patterns").status_code == 200
    assert 'href="/patterns"' not in site.get("/runs").text


def test_the_header_counts_runs(site: Any, add_run: Any) -> None:
    add_run(status="running")
    add_run(status="queued")
    text = site.get("/datasets").text
    assert "1 running" in text
    assert "1 queued" in text
    assert 'data-live="true"' in text


def test_a_page_asked_again_is_not_sent_again(site: Any, add_run: Any) -> None:
    tag = site.get("/runs").headers["HX-PTag"]
    assert site.get("/runs", headers={"HX-PTag": tag}).status_code == 304
    assert site.get("/runs?until=2026-03-01", headers={"HX-PTag": tag}).status_code == 304  # what polling adds
    assert site.get("/runs?sort=name", headers={"HX-PTag": tag}).status_code == 200  # another view
    add_run()
    assert site.get("/runs", headers={"HX-PTag": tag}).status_code == 200


def test_the_tag_of_a_page_knows_no_clock() -> None:
    request = Request({"type": "http", "method": "GET", "path": "/runs", "query_string": b"q=a", "headers": []})
    assert templating.page_tag(request, "1") == templating.page_tag(request, "1") != templating.page_tag(request, "2")


# Errors -----------------------------------------------------------------------------------------------------------------


def test_an_unknown_address_says_where_to_go(site: Any) -> None:
    answer = site.get("/nothing/here")
    assert answer.status_code == 404
    assert "There is nothing at this address." in answer.text
    assert 'href="/runs">Go to the runs' in answer.text


def test_programs_get_problem_documents(site: Any) -> None:
    answer = site.get("/nothing/here", headers={"Accept": "application/json"})
    assert answer.headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("status", "action"), [(401, "Sign in"), (404, "Go to the runs"), (409, "Go to the runs"), (500, "Try again")]
)
def test_error_pages_offer_a_way_on(status: int, action: str) -> None:
    request = Request({"type": "http", "method": "GET", "path": "/x", "query_string": b"", "headers": []})
    answer = render_error(request, status, "Title", "It <b>broke</b>.")
    html = bytes(answer.body).decode()
    assert answer.status_code == status
    assert action in html
    assert "It &lt;b&gt;broke&lt;/b&gt;." in html
    assert 'id="poller"' not in html


def test_an_error_of_an_action_is_a_toast() -> None:
    headers = [(b"hx-target", b"div#toasts")]
    request = Request({"type": "http", "method": "POST", "path": "/x", "query_string": b"", "headers": headers})
    answer = render_error(request, 409, "Title", "The run is running.")
    assert answer.status_code == 409
    assert bytes(answer.body).decode().lstrip().startswith('<div class="toast"')


def test_the_reference_of_the_api_lists_every_call(site: Any) -> None:
    schema = site.get("/openapi.json").json()
    text = joined(site.get("/api").text)
    for path, operations in schema["paths"].items():
        for method in operations:
            assert re.search(rf">{method.upper()}</span><code>{re.escape(path)}</code>", text), f"{method} {path}"
    assert "curl -X POST http://localhost/api/v1/sweeps" in text


def test_the_schema_tells_how_errors_look(site: Any) -> None:
    schema = site.get("/openapi.json").json()
    told = schema["paths"]["/api/v1/runs/{run_id}"]["get"]["responses"]["4XX"]["content"]["application/problem+json"]
    answer = site.get("/api/v1/runs/nothing", headers={"Accept": "application/json"})
    assert answer.headers["content-type"] == "application/problem+json"
    assert set(answer.json()) == set(told["schema"]["properties"])
    assert "HTTPValidationError" not in schema["components"]["schemas"]


# Rules of the templates -------------------------------------------------------------------------------------------------

WORDS = re.compile(r"[^\W\d_]{2,}")
ATTRIBUTES = {"aria-label", "placeholder", "title", "alt", "data-copied"}
DOWNLOADED = {"report.html"}  # a file of its own, whose policy names its one style sheet by hash
FREE = {"Runoff", "train/cat/0001.jpg", "train/dog/0001.jpg", "test/cat/0001.jpg"}  # names and examples of code


class Visible(HTMLParser):
    """Collects text, attributes that are read aloud, and what a strict Content-Security-Policy refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self.refused: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = dict(attrs)
        if tag == "style" or (tag == "script" and "src" not in names):
            self.refused.append(tag)
        for name, value in attrs:
            if name == "style" or name.startswith(("on", "hx-on")):
                self.refused.append(f"{tag} {name}")
            if name in ATTRIBUTES:
                self.text.append(value or "")

    def handle_data(self, data: str) -> None:
        self.text.append(re.sub(r'[\w:-]+="[^"]*"', "", data))  # macros that only make attributes


def read_template(path: Path) -> Visible:
    source = re.sub(r"\{#.*?#\}", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    source = re.sub(r"\{%-?\s*trans\b.*?endtrans\s*-?%\}", "", source, flags=re.DOTALL)
    source = re.sub(r"\{\{.*?\}\}|\{%.*?%\}", "", source, flags=re.DOTALL)
    visible = Visible()
    visible.feed(source)
    return visible


@pytest.mark.parametrize("name", TEMPLATES)
def test_visible_text_goes_through_gettext(name: str) -> None:
    found = " ".join(read_template(templating.TEMPLATES / name).text)
    left = [word for part in found.split() if part not in FREE for word in WORDS.findall(part)]
    assert left == [], f"{name} holds text that can't be translated: {left}"


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_hold_nothing_that_the_policy_refuses(name: str) -> None:
    assert set(read_template(templating.TEMPLATES / name).refused) <= ({"style"} if name in DOWNLOADED else set())


def test_all_templates_compile() -> None:
    for name in TEMPLATES:
        templating.environment().get_template(name)
