"""Difficulty over runs: which test images are hard, and the accuracy of a vote of the runs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel

from app.compare import difficulty
from app.compare.difficulty import ClassDifficulty, Difficulty, Interval, LeftOut
from app.compare.load import MAX_COMPARED, runs_to_compare
from app.errors import Conflict
from app.web.deps import Reading, State
from trainer.i18n import _

router = APIRouter(tags=["compare"])


class RunDifficulty(BaseModel):
    """One run that is counted; ``num_epochs`` is how many epochs its forgetting was counted over."""

    id: str
    name: str
    epoch: int
    accuracy: float
    num_epochs: int


class LeftOutRun(BaseModel):
    id: str
    name: str
    reason: str


class HardImage(BaseModel):
    """A test image. ``answer`` is the class that most runs predict, and ``num_agreeing`` is how many do.

    ``forgotten`` is a mean over runs.
    """

    index: int
    label: int
    answer: int
    num_agreeing: int
    num_right: int
    forgotten: float


class Vote(BaseModel):
    """The majority vote of the runs; ``difference`` is its accuracy minus that of the best single run, paired."""

    num_correct: int
    accuracy: float
    interval: Interval
    difference: float
    difference_interval: Interval


class DifficultyOut(BaseModel):
    """Counts are of test images; the three lists hold the hardest first, ``limit`` at most."""

    runs: list[RunDifficulty]
    left_out: list[LeftOutRun]
    num_images: int
    num_right_in_all: int
    num_wrong_in_all: int
    num_disputed: int
    num_forgotten: int
    num_never_right: int  # in no run after any epoch
    mean_accuracy: float
    best_run: str
    best_accuracy: float
    vote: Vote
    wrong_in_all: list[HardImage]
    disputed: list[HardImage]
    forgotten: list[HardImage]
    classes: list[ClassDifficulty]


@router.get("/difficulty")
def difficulty_over_runs(
    state: State,
    session: Reading,
    run: Annotated[list[str], Query(min_length=1, max_length=MAX_COMPARED, description="run id, several times")],
    at: Annotated[str, Query(description="last, best or an epoch")] = "last",
    limit: Annotated[int, Query(ge=1, le=1000, description="maximum number of images per list")] = 100,
) -> DifficultyOut:
    """Test images that are wrong in all runs, disputed among them or forgotten over epochs; accuracy of their majority vote."""
    found, left_out = difficulty.load(state, runs_to_compare(session, run), at)
    if found is None:
        raise Conflict(_("None of these runs has stored predictions yet: {reason}").format(reason=left_out[0].reason))
    return _out(found, left_out, limit)


def _out(found: Difficulty, left_out: list[LeftOut], limit: int) -> DifficultyOut:
    difference, interval = found.vote_against_best()
    sides = {side: found.images(side) for side in difficulty.SIDES}
    lists = {side: [_image(found, index) for index in indices[:limit]] for side, indices in sides.items()}
    return DifficultyOut(
        runs=[
            RunDifficulty(
                id=run.id, name=run.name, epoch=run.epoch, accuracy=accuracy, num_epochs=run.forgetting.num_epochs
            )
            for run, accuracy in zip(found.runs, found.accuracies, strict=True)
        ],
        left_out=[LeftOutRun(**vars(run)) for run in left_out],
        num_images=found.num_images,
        num_right_in_all=int((found.num_right == len(found.runs)).sum()),
        num_wrong_in_all=len(sides["wrong"]),
        num_disputed=len(sides["disputed"]),
        num_forgotten=len(sides["forgotten"]),
        num_never_right=int(found.never_right.sum()),
        mean_accuracy=float(found.correct.mean()),
        best_run=found.runs[found.best].id,
        best_accuracy=found.accuracies[found.best],
        vote=Vote(
            num_correct=int(found.vote_correct.sum()),
            accuracy=float(found.vote_correct.mean()),
            interval=difficulty.interval_of(found.vote_correct),
            difference=difference,
            difference_interval=interval,
        ),
        wrong_in_all=lists["wrong"],
        disputed=lists["disputed"],
        forgotten=lists["forgotten"],
        classes=difficulty.by_class(found),
    )


def _image(found: Difficulty, index: int) -> HardImage:
    return HardImage(
        index=index,
        label=int(found.labels[index]),
        answer=int(found.vote[index]),
        num_agreeing=int(found.num_agreeing[index]),
        num_right=int(found.num_right[index]),
        forgotten=float(found.forgotten[index]),
    )
