"""The JSON of the REST API: what goes in and what comes out. Accuracies are fractions, times ISO 8601 UTC."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Status = Literal["queued", "running", "finished", "failed", "cancelled", "damaged"]
Tag = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=40)]
Name = Annotated[str, StringConstraints(strip_whitespace=True, max_length=120)]
Notes = Annotated[str, StringConstraints(max_length=10_000)]


class RunError(BaseModel):
    """Why a run failed: the error's class, what happened, what to do."""

    error: str
    message: str
    advice: str


class RunProgress(BaseModel):
    """How far a run is. ``fraction`` 0..1 of all steps; ``seconds_left`` as estimated at ``updated_at``."""

    step: int
    total_steps: int | None
    epoch: int
    fraction: float
    seconds_left: float | None
    updated_at: str
    phase: dict[str, Any] | None  # {what, done, total, unit} before the first step


class RunOut(BaseModel):
    """One run."""

    id: str
    name: str
    status: Status
    config: dict[str, Any]
    dataset: str
    model: str
    config_hash: str
    group: str
    sweep: str | None
    seed: int
    epochs: int
    tags: list[str]
    notes: str
    archived: bool
    imported: bool  # copied from another home, or from another run; never started automatically
    num_parameters: int | None
    device: str | None
    precision: str | None
    machines: list[str]  # the kinds of machine of its attempts; empty for runs of older versions
    test_fingerprint: str | None
    num_train: int | None
    num_test: int | None
    epochs_done: int
    created_at: str
    started_at: str | None
    finished_at: str | None
    train_loss: float | None
    train_accuracy: float | None
    test_loss: float | None
    test_accuracy: float | None
    test_correct: int | None
    test_total: int | None
    test_accuracy_interval: list[float] | None
    validation_accuracy: float | None
    best_epoch: int | None
    best_test_accuracy: float | None
    best_is_optimistic: bool  # chosen on the test images
    images_per_second: float | None
    train_seconds: float
    images: int | None  # training images seen
    flops: float | None  # nominal, of training
    attempt: int
    queue_reason: str  # why a queued run waits: disk, slot, host, or "" before it is known
    cancel_requested: bool
    hanging_since: str | None  # the last sign of life of a running run that seems to hang
    error: RunError | None
    defect: str  # a message if the stored predictions contradict the log of the run, else ""
    warnings: list[str]
    progress: RunProgress | None  # of a running run


class RunList(BaseModel):
    runs: list[RunOut]
    total: int


class EpochOut(BaseModel):
    """One epoch. Losses in nats, times in seconds.

    ``flops`` is nominal: 6 x multiply-adds of the forward pass for each training image; null where it was not recorded.
    ``train_seconds``, ``images`` and ``total_flops`` add up from the start of the run, training only.
    """

    epoch: int
    step: int
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    test_correct: int
    test_total: int
    logged_correct: int | None  # the number in the log, if the stored predictions give another one
    validation_loss: float | None
    validation_accuracy: float | None
    learning_rate: float
    seconds: float
    evaluation_seconds: float
    save_seconds: float | None
    images_per_second: float
    flops: float | None
    gflops_per_second: float | None  # achieved while training
    train_seconds: float
    images: int | None
    total_flops: float | None
    ended_at: str

    @property
    def reported_correct(self) -> int:
        """The number of correct predictions according to the log of the run."""
        return self.test_correct if self.logged_correct is None else self.logged_correct


class EpochList(BaseModel):
    epochs: list[EpochOut]


class AccuracyCost(BaseModel):
    """What training cost until a test accuracy was first reached at the end of an epoch; null where it never was.

    Times in seconds of training, without evaluation, saving and pictures; nothing is interpolated between epochs.
    """

    accuracy: float
    epoch: int | None = None
    seconds: float | None = None
    images: int | None = None
    flops: float | None = None
    test_accuracy: float | None = None  # of that epoch


class StepList(BaseModel):
    """Step losses: ``steps[i]`` counts over the whole run, ``losses[i]`` is the mean cross-entropy of that batch."""

    steps: list[int]
    losses: list[float]


class RunChange(BaseModel):
    """What may change on an existing run; fields that are not given stay."""

    model_config = ConfigDict(extra="forbid")

    name: Name | None = None
    tags: list[Tag] | None = Field(None, max_length=20)
    notes: Notes | None = None
    archived: bool | None = None


class RunLabels(BaseModel):
    """Name, tags and notes of a run."""

    model_config = ConfigDict(extra="forbid")

    name: Name = ""
    tags: list[Tag] = Field([], max_length=20)
    notes: Notes = ""


class SweepIn(BaseModel):
    """Several runs: the product of the grid, each combination with ``repeats`` seeds."""

    model_config = ConfigDict(extra="forbid")

    base: dict[str, Any] = {}
    grid: dict[str, Annotated[list[Any], Field(min_length=1, max_length=1000)]] = {}
    repeats: int = Field(1, ge=1, le=1000)
    name: Name = ""
    tags: list[Tag] = Field([], max_length=20)
    notes: Notes = ""
    preset: str | None = None
    dataset: str | None = None


class RepeatsIn(BaseModel):
    """How many repeats to add to a group."""

    model_config = ConfigDict(extra="forbid")

    count: int = Field(3, ge=1, le=1000)


class SweepOut(BaseModel):
    id: str
    runs: list[RunOut]
    warnings: list[str] = []


class FileOut(BaseModel):
    name: str
    size: int
    description: str


class FileList(BaseModel):
    files: list[FileOut]


class DatasetWork(BaseModel):
    """Work on a data set: ``what`` is import, download or cache; ``error`` {message, advice} ends it.

    ``waiting`` is a sentence while an import waits for space on the disk; it continues automatically.
    """

    name: str
    what: str
    done: int = 0
    total: int = 0
    unit: str = "images"
    waiting: str = ""
    error: dict[str, str] | None = None
    cancelled: bool = False


class DatasetOut(BaseModel):
    """A data set: ``status`` is ready, damaged, available (its cache is made on first use), absent or importing.

    ``absent`` needs a download. ``problem`` and ``advice`` say what is wrong with the files of a damaged one.
    """

    model_config = ConfigDict(extra="ignore")

    name: str
    title: str
    kind: str
    status: str
    image_shape: tuple[int, int, int] | None = None
    num_train: int | None = None
    num_test: int | None = None
    class_names: list[str] = []
    train_counts: list[int] = []
    test_counts: list[int] = []
    train_fingerprint: str | None = None
    test_fingerprint: str | None = None
    mean: list[float] = []
    std: list[float] = []
    num_unreadable: int = 0
    unreadable: list[str] = []
    created_at: str | None = None
    source: str = ""
    problem: str = ""
    advice: str = ""
    work: DatasetWork | None = None


class DatasetList(BaseModel):
    datasets: list[DatasetOut]
    imports: list[DatasetWork]  # of names that are no data set yet


class ModelOut(BaseModel):
    name: str
    title: str
    summary: str
    default_width: int
    width_unit: str
    smallest_image: int


class DeviceOut(BaseModel):
    model_config = ConfigDict(extra="allow")

    name: str
    title: str
    memory_total: int | None = None  # bytes of a GPU
    memory_free: int | None = None


class Layer(BaseModel):
    """One line of a net: output shape (channels, height, width) or (features,)."""

    name: str
    shape: list[int]
    num_parameters: int


class Description(BaseModel):
    """What a config builds; ``multiply_adds`` count one image."""

    model_config = ConfigDict(extra="ignore")

    layers: list[Layer]
    num_parameters: int
    multiply_adds: int
    warnings: list[str] = []


class IndexProgress(BaseModel):
    """Progress of an index that is being made from many run folders: folders read, and all folders."""

    done: int
    total: int
