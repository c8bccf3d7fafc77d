"""What compared runs spent: in total, and until they reached an accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from app.compare.shapes import BudgetRow, ComparedRun
from app.schemas import AccuracyCost, EpochOut
from app.store import epochs as cost
from app.words import short_percent
from trainer.i18n import _


def budget(runs: Sequence[ComparedRun], names: Mapping[str, str]) -> list[BudgetRow]:
    """What each run used up to the epoch compared: parameters, epochs, images, time."""
    many, long = _("{name} {ratio} × as many"), _("{name} {ratio} × as long")
    shown = [names[run.id] for run in runs]
    return [
        _row("num_parameters", _("Parameters"), [run.num_parameters for run in runs], shown, many),
        _row("epochs_done", _("Epochs"), [run.epochs_done for run in runs], shown, many),
        _row("images_seen", _("Training images seen"), [run.images_seen for run in runs], shown, many),
        _row("train_seconds", _("Training time"), [run.train_seconds for run in runs], shown, long),
    ]


def accuracy_rows(costs: Sequence[AccuracyCost], names: Sequence[str]) -> list[BudgetRow]:
    """What each run spent until it reached one accuracy; None where it never did, or where it was not recorded."""
    many, long = _("{name} {ratio} × as many"), _("{name} {ratio} × as long")
    return [
        _row("seconds", _("Training time"), [cost.seconds for cost in costs], names, long),
        _row("epoch", _("Epochs"), [cost.epoch for cost in costs], names, many),
        _row("images", _("Training images seen"), [cost.images for cost in costs], names, many),
        _row("flops", _("Training FLOPs"), [cost.flops for cost in costs], names, many),
    ]


def _row(field: str, title: str, values: Sequence[int | float | None], names: Sequence[str], words: str) -> BudgetRow:
    return BudgetRow(field=field, title=title, values=list(values), verdict=_apart(values, names, words))


def _apart(values: Sequence[float | None], names: Sequence[str], words: str) -> str:
    """How far the values are apart: "equal", "0.3 % apart", "CNN 13 × as long". Of more than two runs none is named.

    Empty where a value is missing or 0.
    """
    known = [value for value in values if value is not None]
    if len(known) < len(values) or len(values) < 2:
        return ""
    least, most = min(known), max(known)
    if least == most:
        return _("equal")
    if least <= 0:
        return ""
    ratio = most / least
    if ratio < 1.5:
        share = (ratio - 1) * 100
        text = _("up to {share} % apart") if len(values) > 2 else _("{share} % apart")
        return text.format(share=f"{share:.1f}" if share >= 0.05 else "< 0.1")
    times = f"{ratio:,.0f}" if ratio >= 9.95 else f"{ratio:.1f}"
    if len(values) > 2:
        return _("up to {ratio} × apart").format(ratio=times)
    return words.format(name=names[known.index(most)], ratio=times)


# Until an accuracy was reached ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ToAccuracy:
    """What each run spent until it first reached an accuracy; ``accuracy`` is None where there is none to ask for."""

    accuracy: float | None
    rows: list[BudgetRow]
    by_run: list[bool]  # which runs reached it
    typed: str  # as the field shows it, in percent
    problem: str

    @property
    def title(self) -> str:
        assert self.accuracy is not None
        return _("To {percent} %").format(percent=short_percent(self.accuracy))

    @property
    def nothing_words(self) -> str:
        """Why there is no table; empty where there is one."""
        if not self.accuracy:
            return _("Not every run has reached an accuracy yet.")
        if not any(self.by_run):
            return _("No run has reached {percent} %.").format(percent=short_percent(self.accuracy))
        return ""


def to_accuracy(typed: str, epochs: Sequence[Sequence[EpochOut]], names: Sequence[str]) -> ToAccuracy:
    """The cost of the accuracy that was typed, else of the highest whole percent that every run reached."""
    wanted, problem = cost.typed_accuracy(typed)
    accuracy = wanted or cost.highest_of_all(epochs)
    if accuracy is None:
        return ToAccuracy(None, [], [], typed, problem)
    costs = [cost.to_accuracy(run, accuracy) for run in epochs]
    shown = typed if problem else short_percent(accuracy)
    return ToAccuracy(accuracy, accuracy_rows(costs, names), [one.epoch is not None for one in costs], shown, problem)
