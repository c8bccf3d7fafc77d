"""``RunConfig``: every choice of a run, and the single source for the form, the API, the CLI flags and the docs.

It holds the fields with their titles, help, bounds, groups and units, the rules between them, and the hashes that name
a configuration. Imports neither torch nor numpy.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from trainer import sentences
from trainer.i18n import N_, _

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class ModelInfo:
    """What must be known of a model before it is built."""

    title: str
    summary: str
    default_width: int
    width_unit: str
    smallest_image: int  # pixels per side; smaller images are zero-padded up to it
    pools_globally: bool  # average-pools to 1 x 1, so it takes any larger image without more parameters
    threads: int | None  # CPU threads that suit it; None = all cores


MODELS: dict[str, ModelInfo] = {
    "fc": ModelInfo(N_("FC"), N_("2 hidden layers"), 8, N_("hidden units"), 1, False, 1),
    "cnn": ModelInfo(N_("CNN"), N_("2 convolutions"), 6, N_("feature maps"), 16, False, 1),
    "lenet": ModelInfo(N_("LeNet"), N_("classic, 2 + 3"), 6, N_("feature maps"), 16, False, 1),
    "vgg": ModelInfo(N_("VGG"), N_("8 convolutions"), 64, N_("feature maps"), 32, True, None),
    "vgg16": ModelInfo(N_("VGG16"), N_("13 + 3, large"), 64, N_("feature maps"), 32, True, None),
}

if TYPE_CHECKING:
    ModelName = str
else:
    ModelName = Literal[*MODELS]

GROUPS: dict[str, str] = {
    "data": N_("Data set"),
    "model": N_("Model"),
    "training": N_("Training"),
    "advanced": N_("Advanced"),
    "repeats": N_("Repeats"),
}


class FieldProblem(BaseModel):
    """One sentence about one field. ``field`` is a name of ``RunConfig`` or a path such as ``grid.learning_rate[2]``."""

    field: str
    message: str


class ConfigError(ValueError):
    """A configuration that can't be accepted; carries one sentence per field."""

    def __init__(self, problems: Iterable[FieldProblem]) -> None:
        self.problems = list(problems)
        super().__init__("; ".join(f"{p.field}: {p.message}" for p in self.problems))


def _no_bool(value: object) -> object:
    """Numbers refuse true and false, which pydantic would read as 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("bool")
    return value


Int = Annotated[int, BeforeValidator(_no_bool)]
Float = Annotated[float, BeforeValidator(_no_bool)]


def _f(
    default: Any,
    title: str,
    help: str,
    group: str,
    *,
    unit: str = "",
    labels: dict[str, str] | None = None,
    **bounds: Any,
) -> Any:
    """A field with what a person needs to know of it; ``labels`` names the values of a choice."""
    extra: dict[str, Any] = {"group": group, "unit": unit, "labels": labels or {}}
    if "allow_inf_nan" not in bounds and isinstance(default, float):
        bounds["allow_inf_nan"] = False
    return Field(default, title=title, description=help, json_schema_extra=extra, **bounds)


class RunConfig(BaseModel):
    """All choices of one run. Immutable; fields may be added, never renamed."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    dataset: str = _f(..., N_("Data set"), N_("The images to train on."), "data", pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")
    permute_pixels: bool = _f(
        False,
        N_("Permute the pixels"),
        N_("One fixed permutation for all images. Nets that rely on neighbouring pixels lose that advantage."),
        "data",
    )
    model: ModelName = _f(
        ..., N_("Model"), N_("The net to train."), "model", labels={k: v.title for k, v in MODELS.items()}
    )
    width: Int | None = _f(
        None, N_("Width"), N_("Scales the layers; empty means the model's default width."), "model", ge=1, le=1024
    )
    epochs: Int = _f(
        1, N_("Epochs"), N_("One epoch is one pass over the training images."), "training", ge=1, le=10_000
    )
    batch_size: Int = _f(64, N_("Batch size"), N_("Images per step."), "training", unit=N_("images"), ge=1, le=65_536)
    optimizer: Literal["sgd", "adam", "adamw", "muon"] = _f(
        "sgd",
        N_("Optimizer"),
        N_("SGD with momentum is the standard choice; Adam adapts each step; Muon orthogonalizes it."),
        "training",
        labels={"sgd": N_("SGD"), "adam": N_("Adam"), "adamw": N_("AdamW"), "muon": N_("Muon")},
    )
    learning_rate: Float = _f(
        0.01,
        N_("Learning rate"),
        N_("The size of a step. If the loss becomes NaN, lower it."),
        "training",
        gt=0,
        le=1e9,
    )
    momentum: Float | None = _f(
        0.5,
        N_("Momentum"),
        N_("SGD and Muon: the fraction of the last step that is kept, from 0 to below 1."),
        "training",
        ge=0,
        lt=1,
    )
    schedule: Literal["constant", "cosine", "one_cycle"] = _f(
        "constant",
        N_("Schedule"),
        N_("How the learning rate changes over the steps."),
        "training",
        labels={"constant": N_("constant"), "cosine": N_("cosine"), "one_cycle": N_("one cycle")},
    )
    peak_at: Float | None = _f(
        0.25,
        N_("Peak at"),
        N_("One cycle only: the fraction of training at which the rate peaks."),
        "advanced",
        unit=N_("of training"),
        gt=0,
        lt=1,
    )
    nesterov: bool | None = _f(False, N_("Nesterov"), N_("SGD and Muon: look ahead along the momentum."), "advanced")
    weight_decay: Float = _f(
        0.0, N_("Weight decay"), N_("Pulls weights towards zero at every step."), "advanced", ge=0, le=10
    )
    label_smoothing: Float = _f(
        0.0,
        N_("Label smoothing"),
        N_("Fraction of the target that is spread over all classes."),
        "advanced",
        ge=0,
        lt=1,
    )
    augmentation: Literal["none", "crop_flip", "crop_flip_cutout"] = _f(
        "none",
        N_("Augmentation"),
        N_("Crop and flip shift images by up to 4 pixels and mirror half of them; cutout hides a square of each."),
        "advanced",
        labels={"none": N_("none"), "crop_flip": N_("crop and flip"), "crop_flip_cutout": N_("crop, flip and cutout")},
    )
    normalization: Literal["dataset", "half", "cifar10", "none"] = _f(
        "dataset",
        N_("Normalization"),
        N_("How pixels are scaled before the net sees them."),
        "advanced",
        labels={
            "dataset": N_("mean and deviation of the data set"),
            "half": N_("to -1 .. 1"),
            "cifar10": N_("CIFAR-10 constants"),
            "none": N_("none, 0 .. 1"),
        },
    )
    permutation_seed: Int | None = _f(
        0, N_("Permutation seed"), N_("Selects the permutation if pixels are permuted."), "advanced", ge=0, le=2**32 - 1
    )
    validation_fraction: Float = _f(
        0.0,
        N_("Validation fraction"),
        N_("Fraction of the training images that is held out for choosing between runs."),
        "advanced",
        unit=N_("of train"),
        ge=0,
        le=0.9,
    )
    train_fraction: Float = _f(
        1.0,
        N_("Training fraction"),
        N_("Less than 1 trains on fewer images."),
        "advanced",
        unit=N_("of train"),
        gt=0,
        le=1,
    )
    label_noise: Float = _f(
        0.0,
        N_("Label noise"),
        N_("Fraction of the training labels that is replaced at random."),
        "advanced",
        unit=N_("of train"),
        ge=0,
        le=1,
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = _f(
        "auto",
        N_("Precision"),
        N_("Number format for training; auto uses the fastest one measured on this machine."),
        "advanced",
        labels={"auto": N_("auto"), "float32": "float32", "bfloat16": "bfloat16", "float16": "float16"},
    )
    device: str = _f(
        "auto",
        N_("Device"),
        N_("auto uses a GPU if there is one."),
        "advanced",
        pattern=r"^(auto|cpu|mps|cuda(:[0-9]{1,2})?)$",
    )
    deterministic: bool = _f(
        True,
        N_("Deterministic"),
        N_("The same numbers in every run on the same machine; a little slower on a GPU."),
        "advanced",
    )
    early_stopping_patience: Int | None = _f(
        None,
        N_("Early stopping"),
        N_("Stop after this many epochs without progress on the validation images."),
        "advanced",
        unit=N_("epochs"),
        ge=1,
        le=10_000,
    )
    weight_averaging: Float | None = _f(
        None,
        N_("Weight averaging"),
        N_("Decay of a running mean of the weights, such as 0.99; the mean is tested instead of the weights."),
        "advanced",
        gt=0,
        lt=1,
        allow_inf_nan=False,
    )
    progressive_size: bool = _f(
        False,
        N_("Progressive size"),
        N_("Train on smaller images first (vgg and vgg16, images of 32 pixels or more)."),
        "advanced",
    )
    flip_averaging: bool = _f(
        False,
        N_("Flip averaging"),
        N_("Test each image and its mirror image, and average the predictions."),
        "advanced",
    )
    seed: Int = _f(
        0,
        N_("First seed"),
        N_("Determines initial weights, order of images and augmentation."),
        "repeats",
        ge=0,
        le=2**32 - 1,
    )


FIELDS = RunConfig.model_fields
# field -> (the field that it depends on, the values under which it applies)
_APPLIES: dict[str, tuple[str, tuple[Any, ...]]] = {
    "momentum": ("optimizer", ("sgd", "muon")),
    "nesterov": ("optimizer", ("sgd", "muon")),
    "peak_at": ("schedule", ("one_cycle",)),
    "permutation_seed": ("permute_pixels", (True,)),
}
_LARGE_LEARNING_RATE = 10


def parse_config(data: Mapping[str, Any]) -> tuple[RunConfig, list[str]]:
    """Check ``data`` and return the config in canonical form with the warnings about it.

    A field that does not apply is stored as null; that is a warning when it was given with another value than its
    default. Raises ``ConfigError`` with one sentence per field.
    """
    data = {name: value for name, value in data.items() if value is not None or name not in _APPLIES}
    warnings = []
    try:
        config = RunConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError(problems_of(error)) from None
    unused: dict[str, None] = {}
    for name, (other, needed) in _APPLIES.items():
        if getattr(config, other) not in needed:
            if name in data and getattr(config, name) != FIELDS[name].default:
                warnings.append(
                    _("{field} does not apply when {other} is {value}, so it is ignored.").format(
                        field=name, other=other, value=sentences.plain(getattr(config, other))
                    )
                )
            unused[name] = None
    config = config.model_copy(update=unused)
    problems = list(_rules(config))
    if problems:
        raise ConfigError(problems)
    if config.learning_rate > _LARGE_LEARNING_RATE:
        warnings.append(_("A learning rate above 10 nearly always ends in NaN; 0.001 to 0.1 is usual."))
    return config, warnings


def _rules(config: RunConfig) -> Iterable[FieldProblem]:
    """The rules between fields that need no knowledge of the data set."""
    if config.early_stopping_patience is not None and config.validation_fraction == 0:
        yield FieldProblem(
            field="early_stopping_patience",
            message=_(
                "Early stopping needs validation images. Set validation_fraction to 0.1, or leave early stopping empty."
            ),
        )
    if config.nesterov and not config.momentum:
        yield FieldProblem(field="nesterov", message=_("Nesterov needs momentum. Set momentum above 0, such as 0.9."))
    if config.progressive_size and not MODELS[config.model].pools_globally:
        yield FieldProblem(
            field="progressive_size",
            message=_("Progressive size works with vgg and vgg16 only. Choose one of these, or turn it off."),
        )


def problems_of(error: ValidationError) -> list[FieldProblem]:
    """One sentence for each field of a pydantic error."""
    return field_problems(error.errors(include_url=False))


def field_problems(items: Iterable[Mapping[str, Any]]) -> list[FieldProblem]:
    """One sentence for each field, from the items of ``ValidationError.errors()``."""
    found = sentences.sentences_of(items, [*FIELDS])
    return [FieldProblem(field=field, message=message) for field, message in found.items()]


# Names of a configuration --------------------------------------------------------------------------------------------


def resolved_width(config: RunConfig) -> int:
    """The width in force, whether given or the model's own."""
    return config.width or MODELS[config.model].default_width


def canonical(config: RunConfig, *, without: Iterable[str] = ()) -> dict[str, Any]:
    """The fields that differ from the defaults, so that a field added later changes no hash.

    A null for "does not apply" and a width that equals the model's own count as defaults.
    """
    fields: dict[str, Any] = {}
    for name, value in config.model_dump().items():
        if name == "width" and value == MODELS[config.model].default_width:
            continue
        if name not in without and value is not None and value != FIELDS[name].default:
            fields[name] = value
    return fields


def _digest(fields: Mapping[str, Any]) -> str:
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def config_hash(config: RunConfig) -> str:
    """12 hex digits that name a configuration: equal for equal choices, whatever the device."""
    return _digest(canonical(config, without=["device"]))


def group_hash(config: RunConfig) -> str:
    """The same without the seed: equal for all repeats of one recipe."""
    return _digest(canonical(config, without=["device", "seed"]))
