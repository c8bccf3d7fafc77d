"""Errors as RFC 9457 problem details with ``errors: [{field, message}]``, and the exceptions that become them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel

from trainer.config import FieldProblem
from trainer.i18n import N_, _

TITLES = {
    400: N_("Bad request"),
    401: N_("Not signed in"),
    403: N_("Not allowed"),
    404: N_("Not found"),
    405: N_("Method not allowed"),
    409: N_("Not possible now"),
    413: N_("Too large"),
    421: N_("Unknown host"),
    422: N_("Not accepted"),
    500: N_("Internal error"),
    503: N_("Not ready"),
    507: N_("Disk full"),
}


class ProblemOut(BaseModel):
    """The JSON of ``application/problem+json``."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    errors: list[FieldProblem]


class Problem(Exception):
    """An error response. ``detail`` is one sentence that says what happened and what to do."""

    status = 400

    def __init__(self, detail: str, errors: Iterable[FieldProblem] = (), *, status: int | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = list(errors)
        self.status = status or self.status

    @property
    def title(self) -> str:
        """A short title for the status."""
        return _(TITLES.get(self.status, TITLES[400]))

    def body(self) -> dict[str, Any]:
        """The fields of ``ProblemOut``."""
        return ProblemOut(title=self.title, status=self.status, detail=self.detail, errors=self.errors).model_dump()


def _schema() -> dict[str, Any]:
    schema = ProblemOut.model_json_schema()
    schema["properties"]["errors"]["items"] = schema.pop("$defs")["FieldProblem"]
    return schema


# The error responses that the API's schema lists for every call.
RESPONSES: dict[int | str, dict[str, Any]] = {
    code: {"description": words, "content": {"application/problem+json": {"schema": _schema()}}}
    for code, words in (
        ("4XX", "Not accepted: one sentence that says what to do, and in `errors` one for each field."),
        ("503", "Not possible now: the sentence says what is missing."),
    )
}


class NotFound(Problem):
    status = 404


class Conflict(Problem):
    status = 409


class Refused(Problem):
    """Invalid input (status 422)."""

    status = 422

    @classmethod
    def fields(cls, problems: Iterable[FieldProblem]) -> Refused:
        """Make the error from one sentence per field; ``detail`` repeats the first one."""
        problems = list(problems)
        return cls(f"{problems[0].field}: {problems[0].message}", problems)


class Unavailable(Problem):
    status = 503


class InsufficientStorage(Problem):
    """There is not enough space on the disk for an upload: 507."""

    status = 507
