"""The predictions of a run for its test images: read from the run folder, filtered, sorted and counted.

The trainer writes the files. ``app.compare`` compares the predictions of several runs.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, get_args
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from app.statistics import CalibrationError, calibration_error
from app.store.recorded import FileVersion, is_as_recorded, version_of
from trainer.i18n import _
from trainer.run_folder import RunFolder

Sort = Literal["index", "confidence", "-confidence", "worst"]
SORTS: tuple[Sort, ...] = get_args(Sort)
_known_labels: WeakValueDictionary[bytes, NDArray[np.int64]] = WeakValueDictionary()
_NUM_CLASSES = 2**16  # a class is stored as uint16
_MOST_CONFIDENCE = 1.001  # rounding can make a probability slightly larger than 1
_CACHED_FILES = 256  # enough for a large comparison; an epoch of 10,000 images takes 70 kB


class PredictionsError(ValueError):
    """The predictions of a run can't be read. The message is shown to users."""


class PredictionsMissing(PredictionsError):
    """There are no predictions for the epoch: it is not complete yet, or its file was removed."""


class PredictionsDamaged(PredictionsError):
    """The file exists, but its content is invalid."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """The predictions of a run after one epoch. The arrays are read-only and shared between callers."""

    labels: NDArray[np.int64]  # [N], true classes
    predicted: NDArray[np.uint16]  # [N]
    confidence: NDArray[np.float32]  # [N], probability of the predicted class, 0..1

    @cached_property
    def correct(self) -> NDArray[np.bool_]:
        """Which images are predicted correctly, bool [N]."""
        correct = np.asarray(self.predicted == self.labels)
        correct.setflags(write=False)
        return correct

    @property
    def num_images(self) -> int:
        return len(self.labels)

    @cached_property
    def num_correct(self) -> int:
        return int(self.correct.sum())

    @cached_property
    def calibration(self) -> CalibrationError | None:
        """The difference between confidence and accuracy; None without images."""
        return calibration_error(self.confidence, self.correct) if self.num_images else None


def load(folder: RunFolder, epoch: int) -> Predictions:
    """Load the predictions of the run in ``folder`` after ``epoch`` (from 1).

    Raises ``PredictionsMissing`` or ``PredictionsDamaged``.
    """
    return _load(_checked(folder, folder.labels_path, epoch), _checked(folder, folder.predictions_path(epoch), epoch))


def load_log_probabilities(folder: RunFolder, epoch: int) -> NDArray[np.float16] | None:
    """Load ``log_probabilities`` float16 [N, K]; None if the run kept none for this epoch.

    They are large, so they are not cached.

    Raises ``PredictionsMissing`` or ``PredictionsDamaged``.
    """
    path = _checked(folder, folder.predictions_path(epoch), epoch).path
    return _tensors(path, ["log_probabilities"], required=False).get("log_probabilities")


def load_correct(folder: RunFolder, epoch: int) -> NDArray[np.bool_]:
    """Load which images were predicted correctly after ``epoch``, bool [N].

    Only the labels are cached, so reading all epochs of a run does not fill the cache.

    Raises ``PredictionsMissing`` or ``PredictionsDamaged``.
    """
    labels = _labels(_checked(folder, folder.labels_path, epoch))
    path = _checked(folder, folder.predictions_path(epoch), epoch).path
    predicted = _tensors(path, ["predicted"])["predicted"]
    if predicted.shape != labels.shape:
        raise _damaged(path, f"{predicted.shape}, {labels.shape}")
    return np.asarray(predicted == labels)


def _checked(folder: RunFolder, path: Path, epoch: int) -> FileVersion:
    """The present version of a file that has the hash in the run's log."""
    try:
        file = version_of(path)
        is_right = is_as_recorded(folder, file)
    except (FileNotFoundError, NotADirectoryError):
        raise PredictionsMissing(
            _(
                "There are no test predictions for epoch {epoch}. It is not complete, or its file {name} was removed."
            ).format(epoch=epoch, name=path.name)
        ) from None
    except OSError as error:
        raise _damaged(path, error.strerror) from None
    if not is_right:
        raise _damaged(path, _("the file has changed since the run wrote it"))
    return file


@lru_cache(maxsize=_CACHED_FILES)
def _load(labels_file: FileVersion, predictions_file: FileVersion) -> Predictions:
    labels = _labels(labels_file)
    path = predictions_file.path
    tensors = _tensors(path, ["predicted", "confidence"])
    predicted, confidence = tensors["predicted"], tensors["confidence"]
    if predicted.dtype != np.uint16 or confidence.dtype != np.float32:
        raise _damaged(path, f"{predicted.dtype}, {confidence.dtype}")
    if not predicted.shape == confidence.shape == labels.shape:
        raise _damaged(path, f"{predicted.shape}, {confidence.shape}, {labels.shape}")
    if not np.all((confidence >= 0) & (confidence <= _MOST_CONFIDENCE)):  # NaN fails both comparisons
        raise _damaged(path, "confidence")
    result = Predictions(labels, predicted, confidence)
    for array in vars(result).values():
        array.setflags(write=False)
    return result


@lru_cache(maxsize=_CACHED_FILES)
def _labels(file: FileVersion) -> NDArray[np.int64]:
    try:
        labels = np.load(file.path, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise _damaged(file.path, error) from None
    if not isinstance(labels, np.ndarray) or labels.ndim != 1 or labels.dtype.kind not in "ui":
        raise _damaged(file.path, getattr(labels, "dtype", type(labels).__name__))
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < _NUM_CLASSES:
        raise _damaged(file.path, f"{labels.min()} … {labels.max()}")
    return _shared(labels.astype(np.int64))


def _shared(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return one shared array for equal labels, because all runs on a data set have the same ones."""
    return _known_labels.setdefault(hashlib.sha256(labels.tobytes()).digest(), labels)


def _tensors(path: Path, names: list[str], *, required: bool = True) -> dict[str, NDArray[Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            known = set(file.keys())
            if required and not known.issuperset(names):
                raise _damaged(path, ", ".join(sorted(set(names) - known)))
            return {name: file.get_tensor(name) for name in names if name in known}
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, detail: object) -> PredictionsDamaged:
    return PredictionsDamaged(
        _("The test predictions in {name} are damaged ({detail}). Resume the run, or train it again.").format(
            name=path.name, detail=detail
        )
    )


def defect_of(epoch: int, counted: int, num_images: int, reported: int | None) -> str:
    """A message if the stored predictions contradict the count in the run's log, else ""."""
    if reported is None or reported == counted:
        return ""
    return _(
        "Defect of this run: the stored predictions of epoch {epoch} give {counted} of {n} right, but "
        "the log says {reported}. The numbers shown are counted from the predictions. Train the run again."
    ).format(epoch=epoch, counted=f"{counted:,}", n=f"{num_images:,}", reported=f"{reported:,}")


# Queries -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PredictionQuery:
    """Filter and order of predictions; None means any."""

    correct: bool | None = None
    label: int | None = None
    predicted: int | None = None
    min_confidence: float | None = None
    sort: Sort = "index"
    limit: int = 100
    offset: int = 0


class Prediction(BaseModel):
    """A test image with its true class and its predicted class."""

    index: int
    label: int
    predicted: int
    confidence: float


class PredictionPage(BaseModel):
    """One page of predictions: ``items`` are those of the page, ``total`` counts all that match the query.

    ``num_correct`` counts all correct predictions of the epoch, whether they match or not. ``defect`` is a message if
    the run's log has another number, else empty.
    """

    total: int
    items: list[Prediction]
    num_correct: int
    defect: str = ""


def query(predictions: Predictions, wanted: PredictionQuery) -> PredictionPage:
    """The predictions that match ``wanted``, sorted, ties by index. Raises ``ValueError`` for an unknown sort."""
    chosen = _order(predictions, np.flatnonzero(_mask(predictions, wanted)), wanted.sort)
    page = chosen[wanted.offset : wanted.offset + wanted.limit]
    items = [
        Prediction(
            index=int(i),
            label=int(predictions.labels[i]),
            predicted=int(predictions.predicted[i]),
            confidence=float(predictions.confidence[i]),
        )
        for i in page
    ]
    return PredictionPage(total=len(chosen), items=items, num_correct=predictions.num_correct)


def _mask(predictions: Predictions, wanted: PredictionQuery) -> NDArray[np.bool_]:
    mask = np.ones(predictions.num_images, dtype=np.bool_)
    if wanted.correct is not None:
        mask &= predictions.correct == wanted.correct
    if wanted.label is not None:
        mask &= predictions.labels == wanted.label
    if wanted.predicted is not None:
        mask &= predictions.predicted == wanted.predicted
    if wanted.min_confidence is not None:
        mask &= predictions.confidence >= wanted.min_confidence
    return mask


def _order(predictions: Predictions, indices: NDArray[np.intp], sort: str) -> NDArray[np.intp]:
    """Sort ``indices`` (ascending) by ``sort``. Sorts are stable, so ties stay ordered by index."""
    confidence, correct = predictions.confidence[indices], predictions.correct[indices]
    match sort:
        case "index":
            return indices
        case "confidence":
            return indices[np.argsort(confidence, kind="stable")]
        case "-confidence":
            return indices[np.argsort(-confidence, kind="stable")]
        case "worst":  # from the most confident wrong prediction to the most confident correct one
            return indices[np.lexsort((np.where(correct, confidence, -confidence), correct))]
    raise ValueError(_("Must be one of {values}. You typed {typed}.").format(values=", ".join(SORTS), typed=sort))
