"""The page of checks: what is damaged in this home, and what can be restored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse
from sqlmodel import col, select

from app.runs.check import Checked
from app.runs.checking import Check
from app.runs.repair import Repaired
from app.store.database import reading
from app.store.tables import Run
from app.web import templating
from app.web.deps import State
from app.words import number, seconds
from trainer.i18n import _, ngettext

router = APIRouter()


@dataclass(frozen=True)
class DamagedItem:
    """A damaged thing on the page; ``href`` and ``restore`` are empty unless it is a run, or nothing can be restored."""

    title: str
    checked: Checked
    href: str = ""
    restore: str = ""


@dataclass(frozen=True)
class CheckPage:
    """Variables of check.html."""

    check: Check | None
    items: list[DamagedItem]
    repaired: Repaired | None = None
    repaired_name: str = ""

    @property
    def is_under_way(self) -> bool:
        return self.check is not None and self.check.seconds is None

    @property
    def progress_words(self) -> str:
        """How far the check is."""
        if self.check is None:
            return ""
        text = ngettext("{done} of {total} run checked.", "{done} of {total} runs checked.", self.check.total)
        text = text.format(done=number(self.check.done), total=number(self.check.total))
        return f"{text} {self.check.reading}".strip()

    @property
    def repaired_words(self) -> str:
        """What the last repair restored, and what is still damaged."""
        if self.repaired is None:
            return ""
        nothing = _("Nothing could be restored.") if self.repaired.problems else _("Nothing was damaged.")
        sentences = self.repaired.done or [nothing]
        if self.repaired.problems:
            sentences = [*sentences, _("Still damaged: {what}").format(what=" ".join(self.repaired.problems))]
        return " ".join(sentences)

    @property
    def summary(self) -> str:
        """How the last check ended, in one sentence."""
        if self.check is None or self.check.seconds is None:
            return ""
        num_damaged, count = len(self.check.damaged), self.check.num_checked
        text = ngettext("{n} thing checked in {time}", "{n} things checked in {time}", count)
        text = text.format(n=number(count), time=seconds(self.check.seconds))
        if not num_damaged:
            return _("{checked}: nothing is damaged.").format(checked=text)
        return _("{checked}: {damaged} damaged.").format(checked=text, damaged=number(num_damaged))


@router.get("/check")
def show(request: Request, state: State) -> Response:
    """The page; it updates while a check is running."""
    check = state.checks.latest()
    damaged = check.damaged if check is not None else ()
    repaired: Repaired | None = state.checks.last_repair
    wanted = [*(each.name for each in damaged), *([repaired.run_id] if repaired else [])]
    with reading(state.engine) as session:
        found = session.exec(select(Run.id, Run.name).where(col(Run.id).in_(wanted))).all()
    names = dict(found)
    name = (names.get(repaired.run_id) or repaired.run_id) if repaired else ""
    page = CheckPage(check, [_item(checked, names) for checked in damaged], repaired, name)
    return templating.render(request, "check.html", page, version=f"{check} {repaired}", live=page.is_under_way)


def _item(checked: Checked, names: dict[str, str]) -> DamagedItem:
    if checked.name not in names:
        return DamagedItem(checked.name, checked)
    path = f"/runs/{checked.name}"
    return DamagedItem(
        names[checked.name] or checked.name, checked, path, f"/check/{checked.name}" if checked.remedies else ""
    )


@router.post("/check")
def start(state: State, full: Annotated[bool, Form()] = False) -> Response:
    """Begin a check, and redirect to the page."""
    state.checks.start(full=full)
    return RedirectResponse("/check", status_code=303)


@router.post("/check/{run_id}")
def restore(state: State, run_id: str) -> Response:
    """Restore damaged files of a run from intact copies, and redirect to the page."""
    state.checks.restore(run_id)
    return RedirectResponse("/check", status_code=303)
