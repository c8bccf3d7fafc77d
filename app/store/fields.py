"""The fields of a run that can be searched, sorted by or shown as a column, with their names, titles and types."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from sqlalchemy import ColumnElement, func

from app.store.tables import STATUSES, Run
from trainer.config import FIELDS as CONFIG_FIELDS
from trainer.config import RunConfig
from trainer.i18n import N_, _

Kind = Literal["number", "accuracy", "text", "choice", "flag", "time", "tags"]
_CONFIG = "config."  # prefix of a config field that also exists as a column, such as the device
_KINDS: dict[str, Kind] = {"integer": "number", "number": "number", "boolean": "flag", "string": "text"}


@dataclass(frozen=True)
class Field:
    """A field of a run: a column of the table, or a field of its config."""

    name: str
    title: str
    kind: Kind
    part: Literal["run", "result", "config"]
    values: tuple[str, ...] = ()  # the possible values of a choice

    @property
    def in_config(self) -> bool:
        """Whether the field is stored only in the config and has no column."""
        return self.part == "config" and self.name not in Run.model_fields

    @property
    def column(self) -> ColumnElement[Any]:
        """The SQL expression of the field; NULL if a run has no value."""
        if self.in_config:
            return func.json_extract(Run.config, f"$.{self.name.removeprefix(_CONFIG)}")
        column: ColumnElement[Any] = getattr(Run, self._attribute)
        return column

    def of(self, run: Run) -> Any:
        """The value of the field for ``run``; None if it has none. Tags are joined by commas."""
        if self.in_config:
            return run.config.get(self.name.removeprefix(_CONFIG))
        value = getattr(run, self._attribute)
        return ", ".join(value) if self.kind == "tags" else value

    @property
    def _attribute(self) -> str:
        return "tags" if self.kind == "tags" else self.name


_OF_RUN: dict[str, tuple[str, Kind]] = {
    "name": (N_("Name"), "text"),
    "id": (N_("Id"), "text"),
    "status": (N_("Status"), "choice"),
    "tag": (N_("Tags"), "tags"),
    "notes": (N_("Notes"), "text"),
    "group": (N_("Group"), "text"),
    "sweep": (N_("Sweep"), "text"),
    "config_hash": (N_("Config hash"), "text"),
    "created_at": (N_("Created"), "time"),
    "started_at": (N_("Started"), "time"),
    "finished_at": (N_("Finished"), "time"),
    "attempt": (N_("Attempt"), "number"),
    "device": (N_("Device used"), "text"),
    "precision": (N_("Precision used"), "text"),
}
_RESULTS: dict[str, tuple[str, Kind]] = {
    "test_accuracy": (N_("Test accuracy"), "accuracy"),
    "test_loss": (N_("Test loss"), "number"),
    "train_accuracy": (N_("Training accuracy"), "accuracy"),
    "train_loss": (N_("Training loss"), "number"),
    "validation_accuracy": (N_("Validation accuracy"), "accuracy"),
    "best_test_accuracy": (N_("Best test accuracy"), "accuracy"),
    "best_epoch": (N_("Best epoch"), "number"),
    "test_correct": (N_("Correct predictions"), "number"),
    "test_total": (N_("Predictions"), "number"),
    "epochs_done": (N_("Epochs done"), "number"),
    "train_seconds": (N_("Training time, s"), "number"),
    "evaluation_seconds": (N_("Evaluation time, s"), "number"),
    "images_per_second": (N_("Images/s"), "number"),
    "flops": (N_("Training FLOPs"), "number"),
    "num_parameters": (N_("Parameters"), "number"),
    "num_train": (N_("Training images"), "number"),
    "num_test": (N_("Test images"), "number"),
}


@cache
def fields() -> dict[str, Field]:
    """All fields by name: those of the run, its results, and those of its config.

    ``config.device`` is the device that was chosen, ``device`` the one that was used.
    """
    known: list[Field] = []
    for name, (title, kind) in _OF_RUN.items():
        values = STATUSES if name == "status" else ()
        known.append(Field(name, title, kind, "run", values))
    known += [Field(name, title, kind, "result") for name, (title, kind) in _RESULTS.items()]
    known += [_config_field(name, schema) for name, schema in RunConfig.model_json_schema()["properties"].items()]
    return {field.name: field for field in known}


def _config_field(name: str, schema: dict[str, Any]) -> Field:
    option = schema.get("anyOf", [schema])[0]
    kind: Kind = "choice" if "enum" in option else _KINDS[option["type"]]
    key = _CONFIG + name if name in _OF_RUN else name
    return Field(key, CONFIG_FIELDS[name].title or name, kind, "config", tuple(option.get("enum", ())))


def unknown_field(name: str) -> str:
    """The error message for a field that does not exist, with a suggestion if there is a similar one."""
    meant = closest(name.lower(), fields())
    if meant:
        return _("There is no field {name}. Did you mean {meant}?").format(name=name[:40], meant=meant)
    message = _(
        "There is no field {name}. Fields are those of a configuration, such as learning_rate, and results, such as "
        "test_accuracy. Use quotes to search for it as text."
    )
    return message.format(name=name[:40])


def closest(typed: str, names: Iterable[str]) -> str | None:
    """The name most similar to ``typed``, or the one with these initials (``lr`` for learning_rate)."""
    names = list(names)
    similar = difflib.get_close_matches(typed, names, 1, cutoff=0.65)
    initials = [name for name in names if "".join(part[0] for part in re.split(r"[_.]", name)) == typed]
    return next(iter([*similar, *initials]), None)
