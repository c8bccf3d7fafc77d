"""In which fields the configurations of compared runs differ, and whether the runs can be compared fairly."""

from __future__ import annotations

from collections.abc import Sequence

from app.compare.shapes import ComparedRun, ConfigDifference
from app.runs.sweeps import NOT_FACTORS
from trainer.config import FIELDS, MODELS
from trainer.i18n import _, ngettext

# Differences ---------------------------------------------------------------------------------------------------------


def config_differences(runs: Sequence[ComparedRun]) -> list[ConfigDifference]:
    """The fields in which the runs differ, in the order of ``RunConfig``.

    A field that a run's config does not have, as it is older than the field, equals nothing, whatever its default is.
    """
    result = []
    for name, info in FIELDS.items():
        known = [name in run.config for run in runs]
        given = [run.config.get(name) for run in runs]
        values = [_width(run) for run in runs] if name == "width" else given
        if any(known) and (not all(known) or any(value != values[0] for value in values)):
            title, is_factor = _(info.title or name), _is_factor(name, runs)
            result.append(ConfigDifference(field=name, title=title, values=values, is_known=known, is_factor=is_factor))
    return result


def _width(run: ComparedRun) -> int | None:
    model = MODELS.get(str(run.config.get("model")))
    return run.config.get("width") or (model.default_width if model else None)


def _is_factor(name: str, runs: Sequence[ComparedRun]) -> bool:
    """Whether a field that differs can explain a difference: not where it follows from the model or does not apply."""
    given = [run.config.get(name) for run in runs]
    if name == "width" and len({run.config.get("model") for run in runs}) > 1:
        return any(value is not None for value in given)
    applies = FIELDS[name].default is None or None not in given
    return name not in NOT_FACTORS and applies


# Fairness ------------------------------------------------------------------------------------------------------------


def fairness(runs: Sequence[ComparedRun], differences: Sequence[ConfigDifference]) -> list[str]:
    """Sentences on whether the runs can be compared fairly, and to what a difference can be assigned."""
    if len(runs) < 2:
        return []
    assigned = _unequal_epochs(runs) or _factors(differences)
    return [*_same_images(runs, {difference.field for difference in differences}), assigned]


def _unequal_epochs(runs: Sequence[ComparedRun]) -> str:
    """A sentence where unfinished runs are compared at other epochs than the rest; else ""."""
    predicted = [run for run in runs if run.predictions is not None]
    epochs = sorted({run.epoch for run in predicted if run.epoch is not None})
    short = [
        run for run in predicted if run.status != "finished" and (run.epoch or 0) < (run.config.get("epochs") or 0)
    ]
    if len(epochs) < 2 or not short:
        return ""
    first = ngettext(
        "{n} run is not finished, and the runs are compared after {low} to {high} epochs:",
        "{n} runs are not finished, and the runs are compared after {low} to {high} epochs:",
        len(short),
    ).format(n=len(short), low=f"{epochs[0]:,}", high=f"{epochs[-1]:,}")
    return first + " " + _("the difference can't be assigned to their configurations. Compare them at one epoch.")


def _same_images(runs: Sequence[ComparedRun], differing: set[str]) -> list[str]:
    predicted = [run for run in runs if run.predictions is not None]
    if len({run.images_key for run in predicted}) > 1 or len({run.test_fingerprint for run in runs}) > 1:
        return [_("Not all runs were tested on the same images.")]
    if not predicted:
        return []
    n = predicted[0].known.num_images
    same = [ngettext("the same {n} test image", "the same {n} test images in the same order", n).format(n=f"{n:,}")]
    if "normalization" not in differing:
        same.append(_("the same normalization"))
    if runs[0].config.get("permute_pixels") and not differing & {"permute_pixels", "permutation_seed"}:
        same.append(_("the same pixel permutation"))
    return [_("Comparable: {what}.").format(what=", ".join(same))]


def _factors(differences: Sequence[ConfigDifference]) -> str:
    factors = [difference.field for difference in differences if difference.is_factor]
    if not factors:
        if any(difference.field == "seed" for difference in differences):
            return _("Only the seed differs: the runs are repeats of one recipe.")
        return _("No choice differs: the runs are repeats of one configuration.")
    return ngettext(
        "One factor differs, {names}: the difference can be assigned to it.",
        "{n} factors differ ({names}): the difference can't be assigned to one of them.",
        len(factors),
    ).format(n=len(factors), names=", ".join(factors))
