"""Pages from templates: the environment and its filters, addresses of static files, and whether a page has changed.

The variables of a page are a dataclass in the page's module. Here is what all pages share.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
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
from app.draw import markers, small
from app.web.frame import Header, header_of
from trainer.i18n import N_, _, ngettext, translations

TEMPLATES = resources.folder("templates")
STATIC = resources.folder("static")
UNTIL = "until"  # a query parameter that only polling sends: show nothing newer
_SECONDS_BETWEEN_CHECKS = 0.5  # of all static files; a page asks for a dozen of them
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
    """12 hex digits over the content of all static files.

    One version for all files, so that JavaScript modules can import each other by relative name.
    """
    return _version_at(int(time.monotonic() / _SECONDS_BETWEEN_CHECKS))


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
    words.percent_range,
    words.points,
    words.points_range,
    words.p_text,
    words.p_number,
    words.seconds,
    words.whole_seconds,
    words.filesize,
    words.flops,
    words.flops_rate,
    words.compact,
    words.moment,
)


@pass_context
def _is_current(context: Context, href: str) -> bool:
    path = str(context["path"])
    return path == href or path.startswith(href + "/")


@lru_cache(maxsize=1)
def environment() -> Environment:
    """The Jinja environment, made on first use: it escapes everything, and unknown names are errors."""
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
        "icon_of": small.icon,
        "strip_of": small.strip,
        "spark_of": small.spark,
        "mark_of": markers.mark,
        "grey_mark_of": markers.grey_mark,
        "legend_marker_of": markers.legend_marker,
    }
    return env


# Pages ---------------------------------------------------------------------------------------------------------------------


def language() -> str:
    """The language of the current request as a BCP 47 tag."""
    return translations.get().info().get("language", "en").replace("_", "-")


def page_tag(request: Request, version: str) -> str:
    """A hash of all that a page depends on: version of the data, language, URL and static files, never the clock."""
    query = urlencode([(name, value) for name, value in request.query_params.multi_items() if name != UNTIL])
    text = "\0".join([version, language(), request.url.path, query, static_version()])
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def unchanged(request: Request, version: str) -> Response | None:
    """304 where the browser already has this state of the page, else None. Call it before building the page."""
    if request.headers.get("HX-PTag") == page_tag(request, version):
        return Response(status_code=304, headers={"HX-PTag": page_tag(request, version), "Cache-Control": "no-store"})
    return None


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

    ``version`` names the state of the data shown (``queries.data_version``). With it the page asks for news about once a
    second while ``live`` (default: while any run is active), and an answer replaces the part that ``refresh`` names:
    "main", or only "header" on pages with a form. Without ``version`` the page is never refreshed.
    """
    header = header or header_of(request)
    tag = page_tag(request, version) if version is not None else None
    html = (
        environment()
        .get_template(template)
        .render(
            page=page,
            request=request,
            path=request.url.path,
            language=language(),
            header=header,
            tag=tag,
            live=bool(header.num_running or header.num_queued) if live is None else live,
            refresh=refresh,
        )
    )
    headers = {"Cache-Control": "no-store"} | ({"HX-PTag": tag} if tag else {})
    return HTMLResponse(html, status_code=status_code, headers=headers)


def fragment(
    template: str, status_code: int = 200, headers: dict[str, str] | None = None, **variables: Any
) -> Response:
    """A partial template as HTML, to be put into a page that the browser already shows."""
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
    """A message for the corner of the page that is shown, which then asks for news at once.

    ``undo`` is the address and the fields of the request that undoes the action.
    """
    variables = {"icon": icon, "message": message, "href": href, "action": action, "undo": undo}
    return fragment("_partials/toast.html", status_code, {"HX-Trigger": "poll-now"}, **variables)
