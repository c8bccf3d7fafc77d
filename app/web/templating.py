"""Pages from templates: the environment with its filters, addresses of static files, the answer to "is anything new?".

What a page shows is a dataclass beside its view; here lives only what all pages share. No query but the header's counts.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from fastapi import Request
from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined, pass_context
from jinja2.runtime import Context
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from app import resources, words
from app.draw import small as drawings
from trainer.i18n import N_, _, ngettext, translations

TEMPLATES = resources.folder("templates")
STATIC = resources.folder("static")
UNTIL = "until"  # a parameter that only polling sends: show nothing that came after it
_LOOKED_AT_EVERY = 0.5  # seconds between looks at all static files: a page asks for a dozen
IMMUTABLE = "public, max-age=31536000, immutable"

# In the order of the cascade: where two rules weigh the same, the later sheet wins.
STYLE_SHEETS = (
    "tokens.css",
    *(f"css/{name}.css" for name in ("base", "layout", "forms", "tables", "charts", "images", "compare", "runs")),
)
NAVIGATION = (
    ("/runs", N_("Runs")),
    ("/compare", N_("Compare")),
    ("/datasets", N_("Data sets")),
    ("/patterns", N_("Patterns")),
    ("/api", N_("API")),
)


# Static files ------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def _digest(files: tuple[tuple[str, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for name, *_stat in files:
        digest.update(name.encode() + b"\0" + (STATIC / name).read_bytes())
    return digest.hexdigest()[:12]


def static_version() -> str:
    """12 hex digits over the content of all static files. One for all, so that modules can import each other by name."""
    return _version_at(int(time.monotonic() / _LOOKED_AT_EVERY))


@lru_cache(maxsize=1)
def _version_at(_moment: int) -> str:
    files = [(path, path.stat()) for path in sorted(STATIC.rglob("*")) if path.is_file()]
    return _digest(tuple((path.relative_to(STATIC).as_posix(), stat.st_mtime_ns, stat.st_size) for path, stat in files))


def asset(path: str) -> str:
    """The address of a file below static/, which changes with the content and may be cached for ever."""
    assert (STATIC / path).is_file(), f"static/{path} is missing"
    return f"/static/{static_version()}/{path}"


class Assets(StaticFiles):
    """Serves static/ with and without the content hash as the first folder; only the current hash is cached for ever."""

    def __init__(self, directory: Path = STATIC) -> None:
        super().__init__(directory=directory)

    async def get_response(self, path: str, scope: Scope) -> Response:
        version, _slash, rest = path.partition("/")
        is_hash = re.fullmatch(r"[0-9a-f]{12}", version) is not None
        response = await super().get_response(rest if is_hash else path, scope)
        response.headers["Cache-Control"] = IMMUTABLE if is_hash and version == static_version() else "no-cache"
        return response


# The environment -----------------------------------------------------------------------------------------------------------

FILTERS: tuple[Callable[..., str], ...] = (
    words.number,
    words.percent,
    words.short_percent,
    words.points,
    words.seconds,
    words.whole_seconds,
    words.filesize,
    words.flops,
    words.compact,
    words.moment,
)


@pass_context
def _is_current(context: Context, href: str) -> bool:
    path = str(context["path"])
    return path == href or path.startswith(href + "/")


@lru_cache(maxsize=1)
def environment() -> Environment:
    """The Jinja environment, made on first use: autoescape everywhere, unknown names are errors, ``_`` as in Python."""
    env = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.i18n", "jinja2.ext.do"],
    )
    env.install_gettext_callables(_, ngettext, newstyle=False)  # type: ignore[attr-defined]
    env.filters |= {function.__name__: function for function in FILTERS}
    env.globals |= {
        "asset": asset,
        "is_current": _is_current,
        "status_words": words.STATUS_WORDS,
        "navigation": NAVIGATION,
        "style_sheets": STYLE_SHEETS,
        "icon_of": drawings.icon,
        "strip_of": drawings.strip,
        "spark_of": drawings.spark,
        "bars_of": drawings.bars,
    }
    return env


# Pages ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Header:
    """What the header of every page shows of the server."""

    num_running: int = 0
    num_queued: int = 0
    device: str = ""
    known: bool = False  # False on an error page that must not touch the database


def language() -> str:
    """The language of the current request as a BCP 47 tag."""
    return translations.get().info().get("language", "en").replace("_", "-")


def page_tag(request: Request, version: str) -> str:
    """The name of a page's state: version of the data, language, URL and static files, never the clock."""
    query = urlencode([(name, value) for name, value in request.query_params.multi_items() if name != UNTIL])
    text = "\0".join([version, language(), request.url.path, query, static_version()])
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def unchanged(request: Request, version: str) -> Response | None:
    """304 where the browser asks again and holds this state of the page; else None. Ask before building the page."""
    if request.headers.get("HX-PTag") == page_tag(request, version):
        return Response(status_code=304, headers={"HX-PTag": page_tag(request, version), "Cache-Control": "no-store"})
    return None


def header_of(request: Request) -> Header:
    """The header's counts and device, by one small query."""
    from app.store import queries
    from app.store.database import reading

    state = request.app.state.runoff
    with reading(state.engine) as session:
        counts = queries.status_counts(session)
    return Header(counts.get("running", 0), counts.get("queued", 0), device_title(state), known=True)


def device_title(state: Any) -> str:
    """The devices in a word or two, once the trainer host has named them; never waits for it."""
    titles = [str(device["title"]) for device in state.executor.known_devices()]
    gpus = [title for title in titles if not title.startswith("CPU")]
    return ", ".join(gpus) or next(iter(titles), "")


def render(
    request: Request,
    template: str,
    page: Any,
    *,
    status_code: int = 200,
    version: str | None = None,
    live: bool | None = None,
    refresh: str = "main",
    header: Header | None = None,
) -> Response:
    """A whole page from ``templates/<template>``, which sees ``page`` and the frame's variables.

    ``version`` names the state of the data shown (``queries.data_version``); with it the page keeps itself fresh: about
    once a second while ``live`` (default: while any run is active). ``refresh`` says what an answer replaces: "main", or
    "header" only (pages with a form). Without ``version`` nothing is asked again.
    """
    header = header or header_of(request)
    tag = page_tag(request, version) if version is not None else None
    html = environment().get_template(template).render(
        page=page,
        request=request,
        path=request.url.path,
        language=language(),
        header=header,
        tag=tag,
        live=bool(header.num_running or header.num_queued) if live is None else live,
        refresh=refresh,
    )  # fmt: skip
    headers = {"Cache-Control": "no-store"} | ({"HX-PTag": tag} if tag else {})
    return HTMLResponse(html, status_code=status_code, headers=headers)


def fragment(
    template: str, status_code: int = 200, headers: dict[str, str] | None = None, **variables: Any
) -> Response:
    """A piece of HTML from a partial template, for what is put into a page that is already there (a toast, a check)."""
    html = environment().get_template(template).render(language=language(), **variables)
    return HTMLResponse(html, status_code=status_code, headers={"Cache-Control": "no-store"} | (headers or {}))


def toast(
    icon: str,
    message: str,
    *,
    href: str | None = None,
    action: str | None = None,
    undo: tuple[str, dict[str, Any]] | None = None,
    status_code: int = 200,
) -> Response:
    """The answer to an action on a page that stays: a line for its corner; the page then asks for news at once.

    ``undo`` is the address and the fields of the request that takes the action back.
    """
    variables = {"icon": icon, "message": message, "href": href, "action": action, "undo": undo}
    return fragment("_partials/toast.html", status_code, {"HX-Trigger": "poll-now"}, **variables)


# Errors --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ErrorPage:
    """Variables of error.html: what happened, and the way on."""

    status: int
    title: str
    detail: str
    action_href: str
    action: str


def _way_on(request: Request, status: int) -> tuple[str, str]:
    path = request.url.path
    if status == 401:
        return "/login", _("Sign in")
    if status in (500, 503):
        return path, _("Try again")
    for start, href, action in (
        ("/datasets", "/datasets", _("Go to the data sets")),
        ("/compare", "/runs", _("Choose runs to compare")),
    ):
        if path.startswith(start) and path != href:
            return href, action
    return "/runs", _("Go to the runs")


def wants_toast(request: Request) -> bool:
    """Whether the answer goes into the corner of a page that stays (an action by htmx), not into a new page."""
    return request.headers.get("HX-Target") == "div#toasts"


def render_error(request: Request, status: int, title: str, detail: str) -> Response:
    """An error as a page, or as a toast where an action on a page asked. Needs no database."""
    if wants_toast(request):
        return toast("alert", detail, status_code=status)
    page = ErrorPage(status, title, detail, *_way_on(request, status))
    return render(request, "error.html", page, status_code=status, header=Header())
