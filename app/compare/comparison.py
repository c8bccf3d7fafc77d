"""Several runs side by side: which is better, by how much, and is it real.

``compare`` puts the parts together: pairs, recipes, configurations and budgets. The runs come with their predictions
(``app.compare.load`` loads them); nothing here reads a file or the index.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from app.compare.budget import budget
from app.compare.config import config_differences, fairness
from app.compare.names import short_names
from app.compare.pairs import chosen_pairs, family_of, pairs_of
from app.compare.recipes import count_groups, recipes_of
from app.compare.shapes import DEFAULT_MARGIN, BestOf, ComparedRun, CompareError, Comparison, Family, Score
from app.compare.verdicts import family_note, margin_note
from app.compare.winners_curse import best_of
from app.statistics import wilson_interval
from app.store.predictions import defect_of
from trainer.i18n import _

_SMALLEST_MARGIN, _LARGEST_MARGIN = 1e-6, 0.5


def compare(
    runs: Sequence[ComparedRun],
    repeats: Mapping[str, Sequence[ComparedRun]],
    *,
    base: str | None = None,
    margin: float = DEFAULT_MARGIN,
    at: str = "last",
) -> Comparison:
    """Compare ``runs`` in their order, and their recipes over all ``repeats`` (group -> its runs).

    ``base`` limits the pairs to (other, base). ``at`` is last, best or an epoch, as the predictions were loaded. Raises
    ``CompareError``.
    """
    _check(runs, base, margin)
    names = short_names(runs)
    groups = count_groups(runs, repeats, at)
    recipes = recipes_of(groups, next((run.group for run in runs if run.id == base), None), margin)
    chosen = chosen_pairs(runs, base)
    family = family_of(chosen, margin)
    differences = config_differences(runs)
    best = best_of(runs, names)
    return Comparison(
        margin=margin,
        level=family.level,
        num_tested=family.num_pairs,
        names=names,
        answers=[_score(run) for run in runs],
        best_of=best,
        pairs=pairs_of(chosen, family, names, recipes),
        recipes=recipes,
        groups=[counted.group for counted in groups],
        config_differences=differences,
        budget=budget(runs, names),
        fairness=fairness(runs, differences),
        notes=_notes(runs, family, best, at),
    )


def _check(runs: Sequence[ComparedRun], base: str | None, margin: float) -> None:
    ids = [run.id for run in runs]
    if len(set(ids)) < len(ids):
        raise CompareError(_("A run is listed twice. List each run once."))
    if base is not None and base not in ids:
        raise CompareError(_("The base run is not among the runs compared. Add it, or leave base out."))
    if not _SMALLEST_MARGIN <= margin <= _LARGEST_MARGIN:
        raise CompareError(
            _("The margin must be at least 0.000001 and at most 0.5, as a fraction: 0.005 is half a point.")
        )


def _score(run: ComparedRun) -> Score:
    found = run.predictions
    if found is None:
        return Score(run=run.id, epoch=run.epoch)
    low, high = wilson_interval(found.num_correct, found.num_images)
    error = found.calibration
    return Score(
        run=run.id,
        epoch=run.epoch,
        num_images=found.num_images,
        num_correct=found.num_correct,
        accuracy=run.accuracy,
        interval=(float(low), float(high)),
        calibration_error=error.value if error else None,
        calibration_interval=(error.low, error.high) if error else None,
        reported_correct=run.reported_correct,
        defect=defect_of(run.epoch or 0, found.num_correct, found.num_images, run.reported_correct),
    )


def _notes(runs: Sequence[ComparedRun], family: Family, best: BestOf | None, at: str) -> list[str]:
    """Sentences about the whole comparison."""
    notes = [
        family_note(family.num_pairs, family.level) if family.num_pairs else None,
        margin_note(family.margin),
        best.text if best else None,
    ]
    if at == "best" and any(not run.config.get("validation_fraction") for run in runs):
        notes.append(_("The best epoch was chosen on the test images, so these accuracies are optimistic."))
    return [note for note in notes if note]
