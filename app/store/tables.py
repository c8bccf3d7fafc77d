"""The tables of the database, which is an index of the run folders. ``runoff reindex`` rebuilds it from them.

Times are ISO 8601 in UTC.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Index, text
from sqlmodel import JSON, Column, Field, SQLModel

ACTIVE = ("queued", "running")
ENDED = ("finished", "failed", "cancelled", "damaged")
STATUSES = ("running", "queued", "finished", "failed", "cancelled", "damaged")


class RunColumns(SQLModel):
    """A run: its config, its status, and the results from its events so far.

    Rows are made as this class and inserted: SQLAlchemy takes a hundred times as long to make a ``Run``.
    """

    id: str = Field(primary_key=True)
    name: str = ""
    status: str = Field(default="queued", index=True)
    config: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    dataset: str = Field(index=True)
    model: str = Field(index=True)
    config_hash: str = Field(index=True)
    group: str = Field(index=True)
    sweep: str | None = Field(default=None, index=True)
    seed: int = 0
    epochs: int = 1
    tags: list[str] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    notes: str = ""
    archived: bool = False
    imported: bool = False  # its folder is a copy of another home's run, or of another run
    warnings: list[str] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))

    created_at: str = Field(index=True)
    queued_at: str = ""
    started_at: str | None = None
    finished_at: str | None = None

    attempt: int = 0
    fruitless_attempts: int = 0  # in a row, that ended unexpectedly without a new epoch
    queue_reason: str = ""  # why a queued run waits: disk, slot or host
    cancel_requested: bool = False
    hanging_since: str | None = None  # the last sign of life of a run that seems to hang
    error: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON))  # {error, message, advice}

    num_parameters: int | None = None
    device: str | None = None
    precision: str | None = None
    machines: list[str] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))  # of its attempts
    test_fingerprint: str | None = None
    num_train: int | None = None
    num_test: int | None = None
    class_names: list[str] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    steps_per_epoch: int | None = None
    total_steps: int | None = None

    step: int = 0
    phase: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON))  # work before the first step
    seconds_left: float | None = None  # as estimated at updated_at
    updated_at: str = ""
    rate_step: int | None = None  # first known step of the attempt and its time, to compute steps per second
    rate_at: str | None = None

    epochs_done: int = 0
    train_loss: float | None = None
    train_accuracy: float | None = None
    test_loss: float | None = None
    test_accuracy: float | None = None
    test_correct: int | None = None
    test_total: int | None = None
    validation_accuracy: float | None = None
    best_epoch: int | None = None
    best_score: float | None = None  # validation accuracy if there are validation images, else test accuracy
    best_test_accuracy: float | None = None
    train_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    images_per_second: float | None = None
    flops: float | None = None  # of training; None if those of an epoch are unknown
    defect: dict[str, Any] | None = Field(
        default=None, sa_column=Column(JSON)
    )  # {epoch, counted, num_images, reported}

    event_offset: int = 0
    event_seq: int = 0
    version: int = Field(default=0, index=True)  # increases with every change of any run


class Run(RunColumns, table=True):
    """A run in the database."""

    __table_args__ = (
        # for the runs page: these queries need only the index
        Index("ix_run_list", "archived", text("created_at DESC"), "id", "group", "seed", "status", "version"),
        Index("ix_run_archived_status", "archived", "status"),
        Index("ix_run_tags", "tags"),
    )


class Epoch(SQLModel, table=True):
    """An epoch of a run. Losses are in nats, accuracies are fractions, times are in seconds."""

    run_id: str = Field(primary_key=True, foreign_key="run.id", ondelete="CASCADE")
    epoch: int = Field(primary_key=True)
    step: int
    attempt: int
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    test_correct: int  # counted from the stored predictions, as is test_accuracy
    test_total: int
    logged_correct: int | None = None  # the number in the log, if the predictions give another one
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    learning_rate: float
    seconds: float
    evaluation_seconds: float
    save_seconds: float | None = None
    images_per_second: float
    flops: float | None = None  # of training; None in logs from before they were recorded
    ended_at: str
