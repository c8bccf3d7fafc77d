"""The tests of app.statistics can fail: each mutant here is a formula with n off, a sign flipped, a tail halved or doubled, and
a reference test that passes for the real one must refuse it.

A mutant is the source of a function with one piece of text replaced; it takes the function's place in every
module that has it.
"""

from __future__ import annotations
import __future__

import inspect
from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from app import statistics
from tests.app import test_statistics as references

pytestmark = pytest.mark.slow
Reference = Callable[[], None]


def of(test: Callable[..., None], *arguments: Any) -> Reference:
    return lambda: test(*arguments)


MODULES = [statistics, *(import_module(module.name) for module in iter_modules(statistics.__path__, "app.statistics."))]


def owner(name: str) -> ModuleType:
    """The module of ``app.statistics`` that defines the function of that name."""
    [module] = {inspect.getmodule(getattr(module, name)) for module in MODULES if hasattr(module, name)}
    assert module is not None
    return module


def mutant(name: str, before: str, after: str) -> Any:
    """The function of that name with ``before``, which its source has just once, replaced by ``after``."""
    module = owner(name)
    source = inspect.getsource(getattr(module, name))
    assert source.count(before) == 1, f"{name} has {before!r} {source.count(before)} times"
    namespace = dict(vars(module))
    code = compile(source.replace(before, after), f"<mutant of {name}>", "exec", __future__.annotations.compiler_flag)
    exec(code, namespace)
    return namespace[name]


wilson_book = of(references.test_wilson_examples, 15, 148, 0.0624, 0.1605)
wilson_statsmodels = of(references.test_wilson_equals_statsmodels)
t_mean = of(references.test_t_interval_equals_statsmodels)
quantiles = of(references.test_quantiles)
mcnemar = of(references.test_mcnemar_equals_statsmodels)
holm = of(references.test_holm_equals_statsmodels)
paired_book = of(references.test_paired_interval_examples, "Tango", -0.517, -0.026)
paired_likelihood = of(references.test_score_interval_equals_restricted_likelihood, 40, 20, 160)
tost_pair = of(references.test_tost_of_a_pair_equals_restricted_likelihood, 40, 20, 160, 0.2)
tost_pair_mirrored = of(references.test_tost_of_a_pair_equals_restricted_likelihood, 20, 40, 160, 0.2)
tost_seed = of(references.test_tost_of_seeds_equals_statsmodels, 0.01)
connor = of(references.test_smallest_detectable_difference_equals_connors_formula)
images = of(references.test_images_needed_give_that_interval)
fewest = of(references.test_margin_can_be_shown_from_that_number_of_images_on)
seed_tests = of(references.test_seed_tests_equal_statsmodels)
added_images = of(references.test_the_images_variance_is_added_to_the_seeds)
wider = of(references.test_images_widen_where_seeds_hardly_differ)
seeds_cohen = of(references.test_seeds_needed_equals_cohens_tables, 0.5, 1.0, 1.0, 34)
seeds_power = of(references.test_seeds_needed_equals_statsmodels)
calibration = of(references.test_calibration_error_equals_a_loop_over_sorted_images, 1000, 0.6)
calibration_exact = of(references.test_exact_confidences_are_not_called_wrong)
kappa = of(references.test_kappa_equals_the_book_statsmodels_and_sklearn)
kappa_interval = of(references.test_interval_of_kappa_by_hand)
kappa_limits = of(references.test_kappa_of_identical_and_of_opposite_answers)
classes = of(references.test_class_differences_equal_one_class_at_a_time)
vote = of(references.test_majority_vote_examples)
optimism = of(references.test_optimism_where_it_is_known)
optimism_mean = of(references.test_optimism_of_equally_good_runs)
halves = of(references.test_halves_are_halves_and_treat_all_images_alike, 101)
looks = of(references.test_false_alarms_of_several_looks)

MUTANTS: list[tuple[str, str, str, Reference]] = [
    # one proportion, several seeds
    ("normal_quantile", "0.5 + level / 2", "level", quantiles),
    ("t_quantile", "stdtrit(df,", "stdtrit(df + 1,", quantiles),
    ("t_quantile", "0.5 + level / 2", "level", quantiles),
    ("t_p_value", "2 * float", "float", quantiles),
    ("t_p_value", "-abs(t)", "t", quantiles),
    ("t_p_value", "stdtr(df,", "stdtr(df - 1,", quantiles),
    ("wilson_interval", "(x + z2 / 2) / (n + z2)", "(x + z2 / 2) / (n + 1 + z2)", wilson_book),
    ("wilson_interval", "(x + z2 / 2) /", "(x - z2 / 2) /", wilson_book),
    ("wilson_interval", "z2 / 4)", "z2 / 2)", wilson_statsmodels),
    ("wilson_interval", "centre + half", "centre", wilson_book),
    ("t_interval", "t_quantile(len(x) - 1,", "t_quantile(len(x),", t_mean),
    ("t_interval", "ddof=1", "ddof=0", t_mean),
    ("t_interval", "math.sqrt(len(x))", "math.sqrt(len(x) - 1)", t_mean),
    # two runs over the same images
    ("mcnemar_p", "2 * tail", "tail", mcnemar),
    ("mcnemar_p", "b + c, 0.5", "b + c + 1, 0.5", mcnemar),
    ("mcnemar_p", "np.minimum(b, c)", "np.maximum(b, c)", mcnemar),
    ("mcnemar_p", "np.minimum(b, c)", "b", mcnemar),
    ("holm", "len(p), 0, -1", "len(p) + 1, 1, -1", holm),
    ("holm", "len(p), 0, -1", "1, len(p) + 1", holm),
    ("holm", "np.maximum.accumulate", "np.asarray", holm),
    ("paired_interval", "-_score_limit(c, b,", "-_score_limit(b, c,", paired_book),
    ("paired_interval", ", _score_limit(b, c,", ", _score_limit(c, b,", paired_book),
    ("paired_interval", "normal_quantile(level)", "normal_quantile(2 * level - 1)", paired_book),
    ("_score", "b - c - n * d", "b - c + n * d", paired_book),
    ("_score", "- b - c\n", "- b + c\n", paired_likelihood),
    ("_score", "8 * n", "4 * n", paired_likelihood),
    ("_score", "2 * q", "q", paired_likelihood),
    ("_score", "(2 * q + d", "(2 * q - d", paired_likelihood),
    ("_score_limit", "low, high = (b - c) / n", "low, high = (c - b) / n", paired_likelihood),
    ("tost_paired", "np.maximum(", "np.minimum(", tost_pair),
    (
        "tost_paired",
        "_score(b, c, n, d), _score(c, b, n, d)",
        "_score(b, c, n, d), _score(b, c, n, d)",
        tost_pair_mirrored,
    ),
    ("tost_paired", "_score(b, c, n, d), _score(c, b, n, d)", "_score(c, b, n, d), _score(c, b, n, d)", tost_pair),
    ("tost_paired", "special().ndtr(", "2 * special().ndtr(", tost_pair),
    ("tost_paired", "(only_a, only_b, num_images)", "(only_a, only_b, np.add(num_images, 40))", tost_pair),
    ("smallest_detectable_difference", "za**2 - zb**2", "za**2 + zb**2", connor),
    ("smallest_detectable_difference", "n + zb**2", "n - zb**2", connor),
    ("smallest_detectable_difference", "normal_quantile(level)", "normal_quantile(2 * level - 1)", connor),
    ("images_needed", "share - np", "share + np", images),
    ("images_needed", "normal_quantile(level) ** 2", "normal_quantile(level)", images),
    ("fewest_images_for_margin", "(1 - margin) / margin, 6", "(1 + margin) / margin, 6", fewest),
    ("fewest_images_for_margin", "normal_quantile(level)", "normal_quantile(2 * level - 1)", fewest),
    # two recipes over seeds
    ("paired_t", "/ len(x), len(x) - 1", "/ len(x), len(x)", seed_tests),
    ("paired_t", "/ len(x), len(x) - 1", "/ (len(x) - 1), len(x) - 1", seed_tests),
    ("paired_t", "np.float64) - np", "np.float64) + np", seed_tests),
    ("welch_t", "[len(x) - 1, len(y) - 1]", "[len(x), len(y)]", seed_tests),
    ("welch_t", "x.mean() - y.mean()", "y.mean() - x.mean()", seed_tests),
    ("welch_t", "ea + eb, df", "ea - eb if ea > eb else eb - ea, df", seed_tests),
    ("satterthwaite", "share**2", "share", seed_tests),
    ("recipe_interval", "test.difference - half", "test.difference + half", seed_tests),
    ("recipe_interval", "p = max(", "p = min(", added_images),
    ("recipe_interval", "test.squared_error + image_squared_error\n", "test.squared_error\n", wider),
    ("recipe_interval", "[test.df, max(num_images - 1, 1)]", "[test.df + 1, max(num_images - 1, 1)]", added_images),
    ("_p_of", "math.sqrt(squared_error)", "squared_error", seed_tests),
    ("tost_seeds", "margin - abs(difference)", "margin + abs(difference)", tost_seed),
    ("tost_seeds", "margin - abs(difference)", "margin - difference", tost_seed),
    ("tost_seeds", "t = -short", "t = short", tost_seed),
    ("tost_seeds", "stdtr(df, t)", "stdtr(df + 1, t)", tost_seed),
    ("tost_seeds", "float(special().stdtr", "2 * float(special().stdtr", tost_seed),
    ("seeds_needed", "(seeds - 1)", "seeds", seeds_power),
    ("seeds_needed", "0.5 + level / 2", "level", seeds_cohen),
    ("seeds_needed", "1 - float(special().nctdtr", "float(special().nctdtr", seeds_power),
    ("seeds_needed", "return 2 + bisect_left", "return 3 + bisect_left", seeds_power),
    ("false_alarm_rate", "min(max(looks, 1), 10)", "min(max(looks - 1, 1), 10)", looks),
    # confidences
    ("calibration_error", "2 * plain - _folded_mean", "plain + 0 * _folded_mean", calibration),
    ("calibration_error", "2 * plain - _folded_mean(plain, error)", "_folded_mean(plain, error)", calibration),
    ("calibration_error", "np.sqrt(spread / counts)", "np.sqrt(spread / n)", calibration),
    ("calibration_error", "spread + plain**2", "spread - plain**2", calibration),
    ("calibration_error", "variance / n", "variance / (n - 1)", calibration),
    ("calibration_error", "max(value - half, 0.0)", "max(value + half, 0.0)", calibration),
    ("calibration_error", "normal_quantile(level)", "normal_quantile(2 * level - 1)", calibration),
    ("calibration_error", "surprise <=", "surprise >", calibration),
    (
        "calibration_error",
        "chdtri(len(counts), (1 - level) / 2)",
        "chdtri(len(counts), 0.5 + level / 2)",
        calibration_exact,
    ),
    ("_bins", "m / np.maximum(m - 1, 1)", "1.0", calibration),
    ("_bins", "gap = mean(right - sure)", "gap = mean(right + sure)", calibration),
    ("_bins", "n ** (1 / 3)", "n ** (1 / 2)", calibration),
    ("_folded_mean", "- z * special", "+ z * special", calibration),
    ("_folded_mean", "mean + 2 * deviation", "mean + deviation", calibration),
    # several runs' answers
    ("kappa", "(agreement - chance) /", "(agreement + chance) /", kappa),
    ("kappa", "- (share_b[a] + share_a[b])", "+ (share_b[a] + share_a[b])", kappa),
    ("kappa", "share_b[a] + share_a[b]", "share_a[a] + share_b[b]", kappa),
    ("kappa", "- 2 * chance", "- chance", kappa),
    ("kappa", "(n * (1 - chance) ** 4)", "((n - 1) * (1 - chance) ** 4)", kappa),
    (
        "kappa",
        "wilson_interval(agreement * effective, effective, level)",
        "wilson_interval(agreement * n, n, 2 * level - 1)",
        kappa_interval,
    ),
    ("kappa", "1 - (1 - high) / (1 - chance)", "1 + (1 - high) / (1 - chance)", kappa_interval),
    ("kappa", "1 - (1 - low) / (1 - chance)", "1 - low / (1 - chance)", kappa_limits),
    ("class_differences", "count(a & ~b), count(b & ~a)", "count(b & ~a), count(a & ~b)", classes),
    ("class_differences", "np.maximum(n, 1), level)", "np.maximum(n, 1) + 1, level)", classes),
    ("class_differences", "np.maximum(n, 1), level)", "np.maximum(n, 1))", classes),
    ("class_differences", "for right in (a, b)", "for right in (b, a)", classes),
    ("majority_vote", "length > most", "length >= most", vote),
    ("majority_vote", "length + 1, 1", "length + 1, 2", vote),
    ("best_of_n_optimism", "chosen / size - (", "chosen / size + (", optimism),
    ("best_of_n_optimism", "argmax", "argmin", optimism_mean),
    ("best_of_n_optimism", "(n - size)", "n", optimism),
    ("_halves", "- n // 2", "- n // 3", halves),
    ("_halves", "(excess > 0)", "(excess < 0)", halves),
]


@pytest.mark.parametrize(("name", "before", "after", "reference"), MUTANTS, ids=[f"{m[0]}: {m[2]}" for m in MUTANTS])
def test_a_reference_refuses_the_mutant(
    name: str, before: str, after: str, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference()
    replacement = mutant(name, before, after)
    for module in MODULES:
        if hasattr(module, name):
            monkeypatch.setattr(module, name, replacement)
    with np.errstate(all="ignore"), pytest.raises(AssertionError):
        reference()


def test_every_formula_has_a_mutant() -> None:
    formulas = {
        name
        for module in MODULES
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }
    assert formulas - {row[0] for row in MUTANTS} == {"special"}  # an import
