"""The reference page of the REST API, generated from the OpenAPI schema."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response

from app.web import templating
from trainer.i18n import N_, _

router = APIRouter()
METHODS = ("get", "post", "patch", "put", "delete")
# the required parameters of a call, for its example
EXAMPLE_BODIES: dict[str, Any] = {
    "POST /api/v1/runs": {"dataset": "mnist", "model": "cnn", "epochs": 1},
    "POST /api/v1/sweeps": {"base": {"dataset": "mnist"}, "grid": {"model": ["fc", "cnn"]}, "repeats": 3},
    "POST /api/v1/groups/{group}/repeats": {"count": 3},
    "PATCH /api/v1/runs/{run_id}": {"name": "my CNN", "tags": ["keep"]},
    "POST /api/v1/describe": {"dataset": "mnist", "model": "cnn"},
}
EXAMPLE_VALUES = {"run_id": "RUN", "sweep_id": "SWEEP", "group": "GROUP", "name": "NAME"}
EXAMPLE_QUERIES = {"/api/v1/compare": "?run=A&run=B", "/api/v1/difficulty": "?run=A&run=B"}
TAG_TITLES = {
    "runs": N_("Runs"),
    "sweeps": N_("Sweeps"),
    "compare": N_("Compare"),
    "data sets": N_("Data sets"),
    "choices": N_("What can be chosen"),
    "system": N_("System"),
}


@dataclass(frozen=True)
class FieldLine:
    """A parameter, or a field of a request or response body."""

    name: str
    type: str
    default: str
    is_required: bool
    description: str


@dataclass(frozen=True)
class Call:
    """A call with its parameters, bodies and an example."""

    method: str
    path: str
    description: str
    parameters: list[FieldLine]
    body: list[FieldLine]
    body_type: str
    status: str
    answer_type: str  # media type; empty if there is no body
    answer: list[FieldLine]
    curl: str

    @property
    def anchor(self) -> str:
        return f"{self.method.lower()}{self.path.removeprefix('/api/v1').replace('/', '-')}".translate(
            {123: None, 125: None}
        )


@dataclass(frozen=True)
class Section:
    """The calls of one tag."""

    title: str
    anchor: str
    calls: list[Call]


@dataclass(frozen=True)
class ApiPage:
    """Variables of api.html."""

    sections: list[Section]
    num_calls: int
    base_url: str
    version: str


class Reference:
    """Reads one OpenAPI schema."""

    def __init__(self, schema: Mapping[str, Any], base_url: str, *, needs_token: bool) -> None:
        self.schema = schema
        self.base_url = base_url
        self.needs_token = needs_token

    def sections(self) -> list[Section]:
        """All calls by their first tag, in the order in which they first appear."""
        by_tag: dict[str, list[Call]] = {}
        for path, operations in self.schema["paths"].items():
            for method in METHODS:
                if method in operations:
                    operation = operations[method]
                    tag = next(iter(operation.get("tags", [])), "system")
                    by_tag.setdefault(tag, []).append(self._call(method.upper(), path, operation))
        return [Section(_(TAG_TITLES.get(tag, tag)), tag.replace(" ", "-"), calls) for tag, calls in by_tag.items()]

    def _call(self, method: str, path: str, operation: Mapping[str, Any]) -> Call:
        body_type, body = _content(operation.get("requestBody", {}))
        status = next(code for code in operation["responses"] if code.startswith("2"))
        answer_type, answer = _content(operation["responses"][status])
        return Call(
            method,
            path,
            str(operation.get("description") or operation.get("summary", "")),
            [self._parameter(parameter) for parameter in operation.get("parameters", [])],
            list(self._fields(body)),
            body_type,
            status,
            answer_type,
            list(self._fields(answer)),
            self._curl(method, path, body_type),
        )

    def _parameter(self, parameter: Mapping[str, Any]) -> FieldLine:
        where = {"path": _("in the path"), "header": _("header")}.get(parameter["in"], "")
        kind = ", ".join(part for part in (self._type(parameter["schema"]), where) if part)
        description = str(parameter.get("description") or parameter["schema"].get("description", ""))
        default = _plain(parameter["schema"].get("default"))
        return FieldLine(parameter["name"], kind, default, parameter.get("required", False), description)

    def _resolve(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        reference = schema.get("$ref")
        if reference is None:
            return schema
        resolved: Mapping[str, Any] = self.schema["components"]["schemas"][reference.rsplit("/", 1)[1]]
        return resolved

    def _fields(self, schema: Mapping[str, Any]) -> Iterator[FieldLine]:
        schema = self._resolve(schema)
        if schema.get("type") == "array":
            schema = self._resolve(schema["items"])
        required = schema.get("required", [])
        for name, field in schema.get("properties", {}).items():
            description = field.get("description") or self._resolve(field).get("description", "")
            default = "" if "default" not in field else _plain(field["default"])
            yield FieldLine(name, self._type(field), default, name in required, str(description).replace("``", ""))

    def _type(self, schema: Mapping[str, Any]) -> str:
        """The type with its bounds, such as ``integer, 1 to 1,000`` or ``one of fc, cnn``."""
        if "anyOf" in schema:
            return _(" or ").join(dict.fromkeys(self._type(option) for option in schema["anyOf"]))
        if "$ref" in schema:
            return str(self._resolve(schema).get("title", "object"))
        if "enum" in schema:
            return _("one of {values}").format(values=", ".join(_plain(value) for value in schema["enum"]))
        if schema.get("type") == "array":
            return _("list of {type}").format(type=self._type(schema.get("items", {})))
        if schema.get("format") == "binary" or "contentMediaType" in schema:
            return _("file")
        return f"{schema.get('type', _('any'))}{_bounds(schema)}"

    def _curl(self, method: str, path: str, body_type: str) -> str:
        address = self.base_url + path.format_map(_Placeholders(EXAMPLE_VALUES)) + EXAMPLE_QUERIES.get(path, "")
        parts = ["curl" if method == "GET" else f"curl -X {method}", f"'{address}'" if "?" in address else address]
        if self.needs_token:
            parts.append('-H "Authorization: Bearer $RUNOFF_TOKEN"')
        if body_type == "multipart/form-data":
            parts.append("-F name=my-images -F file=@my-images.zip")
        elif body_type:
            parts += [
                "-H 'Content-Type: application/json'",
                f"-d '{json.dumps(EXAMPLE_BODIES.get(f'{method} {path}', {}))}'",
            ]
        return " \\\n  ".join([" ".join(parts[:2]), *parts[2:]])


class _Placeholders(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return key.upper()


def _content(part: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Media type and schema of a body; ("", {}) if there is none."""
    for media_type, content in part.get("content", {}).items():
        return media_type, content.get("schema", {})
    return "", {}


def _plain(value: Any) -> str:
    """A default or a choice as JSON, without quotes if they are not needed."""
    return value if isinstance(value, str) and value else json.dumps(value)


def _bounds(schema: Mapping[str, Any]) -> str:
    low = schema.get("minimum", schema.get("ge", schema.get("exclusiveMinimum", schema.get("gt"))))
    high = schema.get("maximum", schema.get("le", schema.get("exclusiveMaximum", schema.get("lt"))))
    shown = [f"{bound:,g}" if bound is not None else "" for bound in (low, high)]
    if all(shown):
        return _(", {low} to {high}").format(low=shown[0], high=shown[1])
    if shown[0]:
        return _(", at least {low}").format(low=shown[0])
    if "maxLength" in schema:
        return _(", at most {n} characters").format(n=f"{schema['maxLength']:,}")
    return ""


@router.get("/api")
def api_page(request: Request) -> Response:
    """All calls of the REST API."""
    base_url = str(request.base_url).rstrip("/")
    needs_token = request.app.state.runoff.settings.required_token() is not None
    sections = Reference(request.app.openapi(), base_url, needs_token=needs_token).sections()
    page = ApiPage(sections, sum(len(section.calls) for section in sections), base_url, request.app.version)
    return templating.render(request, "api.html", page)
