"""The check of the form of a new run: the plan of what it asks for, and one sentence for each field that is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from app.errors import Refused
from app.forms.read import Typed, request_of, without_faults
from app.forms.same_as import is_one_run
from app.runs.plan import Plan, plan
from app.schemas import SweepIn
from trainer.config import FieldProblem


@dataclass(frozen=True)
class CheckedForm:
    """A form with its problems. With problems, sweep and plan are those of the fields that are right, where possible."""

    typed: Typed
    sweep: SweepIn | None
    plan: Plan | None
    problems: list[FieldProblem]

    @property
    def num_runs(self) -> int:
        return len(self.plan.runs) if self.plan else 0


def check(home: Path, typed: Typed) -> CheckedForm:
    """Plan the form; where it is refused, plan it without the faulty fields, to show what the rest asks for."""
    request = request_of(typed)
    problems = request.problems
    if request.sweep is not None:
        try:
            return CheckedForm(
                typed, request.sweep, plan(home, request.sweep, is_sweep=not is_one_run(request.sweep)), []
            )
        except Refused as refused:
            problems = refused.errors
    rest = request_of(without_faults(typed, problems)).sweep
    try:
        return CheckedForm(typed, rest, plan(home, rest) if rest else None, problems)
    except Refused:
        return CheckedForm(typed, rest, None, problems)
