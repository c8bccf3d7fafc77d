"""Verdicts: every rule in its order, the counts behind it, and the words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from app import statistics
from app.compare.comparison import compare
from app.compare.names import letter, without_shared_parts
from app.compare.pairs import count_pair
from app.compare.shapes import ComparedRun, CompareError, Comparison, Pair, Recipe
from app.compare.verdicts import judge
from app.store.predictions import Predictions
from trainer.config import parse_config

as_json = TypeAdapter(Comparison)
FC: dict[str, Any] = {"model": "fc"}


def make_run(
    id: str,
    wrong: Any,
    *,
    n: int = 10_000,
    group: str | None = None,
    config: dict[str, Any] = FC,
    seed: int = 0,
    **changed: Any,
) -> ComparedRun:
    """A run that takes the images ``wrong`` for the next class."""
    parsed, _warnings = parse_config({"dataset": "mnist", "epochs": 5, "seed": seed, **config})
    labels = np.arange(n) % 10
    predicted = labels.astype(np.uint16)
    predicted[wrong] = (predicted[wrong] + 1) % 10
    values = {"name": f"{id.upper()} seed {seed}", "test_fingerprint": "images", "epoch": 5, **changed}
    found = predictions_of(labels, predicted)
    return ComparedRun(id=id, config=parsed.model_dump(), group=group or id, seed=seed, predictions=found, **values)


def predictions_of(labels: Any, predicted: Any) -> Predictions:
    """Predictions of these classes, each with the same confidence."""
    return Predictions(labels, predicted, np.full(len(labels), 0.9, np.float32))


def split(only_a: int, only_b: int, both_wrong: int = 0, n: int = 10_000) -> list[ComparedRun]:
    """Two runs, CNN (a) and FC (b), that are alone right on so many images."""
    a_wrong, b_wrong = np.r_[0 : only_b + both_wrong], np.r_[only_b : only_b + both_wrong + only_a]
    return [
        make_run("cnn", a_wrong, n=n, config={"model": "cnn"}, num_parameters=6422, epochs_done=5, train_seconds=46.1),
        make_run("fc", b_wrong, n=n, num_parameters=6442, epochs_done=5, train_seconds=3.7),
    ]


def only_pair(runs: list[ComparedRun], **options: Any) -> Pair:
    (pair,) = compare(runs, {}, **options).pairs
    return pair


# Two nets ------------------------------------------------------------------------------------------------------------


def test_a_real_difference() -> None:
    pair = only_pair(split(574, 91, 129))
    assert (pair.num_images, pair.a_correct, pair.b_correct) == (10_000, 9780, 9297)
    assert (pair.both_correct, pair.only_a_correct, pair.only_b_correct, pair.both_wrong) == (9206, 574, 91, 129)
    assert pair.same_wrong_answer == 129
    assert pair.difference == pytest.approx(0.0483)
    assert pair.interval == pytest.approx((0.0434, 0.0534), abs=1e-4)
    assert pair.p_value == pair.p_value_adjusted == pytest.approx(1.4e-86, rel=0.05)
    assert (pair.verdict, pair.heading) == ("a_better", "CNN is better than FC by 4.8 points.")
    assert pair.explanation == (
        "CNN got 9,780 of 10,000 test images right, FC 9,297. "
        "They disagree on 665 images: CNN is right on 574 of these, FC on 91."
    )
    assert pair.evidence == "Only the 665 images on which the runs disagree can distinguish them."
    assert "574 to 91 would practically never happen" in pair.says
    assert "only more seeds answer it" in pair.says_not
    assert pair.notes == []


def test_swapped_runs_swap_the_verdict() -> None:
    pair = only_pair(split(574, 91, 129)[::-1])
    assert (pair.verdict, pair.heading) == ("b_better", "CNN is better than FC by 4.8 points.")


def test_too_close_to_call() -> None:
    pair = only_pair(split(393, 394, 448))
    assert (pair.verdict, pair.heading) == ("inconclusive", "Too close to call: CNN and FC are 0.01 points apart.")
    assert pair.p_value == 1
    assert pair.smallest_detectable_difference == pytest.approx(0.008, abs=2e-4)
    assert pair.num_images_needed == pytest.approx(12_000, rel=0.01)
    assert pair.says == "On images like these the two nets are at most 0.57 points apart, either way."
    assert "One seed each says nothing about the recipes." in pair.says_not


def test_test_and_interval_can_disagree() -> None:
    pair = only_pair(split(358, 307))
    assert pair.interval is not None
    assert pair.interval[0] > 0
    assert pair.verdict == "inconclusive"
    assert pair.notes == ["The interval excludes zero, the exact test does not, p = 0.052."]


def test_equal_counts() -> None:
    pair = only_pair(split(400, 400))
    assert pair.heading == "Too close to call: CNN and FC got equally many right."


def test_smaller_than_the_margin() -> None:
    pair = only_pair(split(20, 15))
    assert (pair.verdict, pair.heading) == ("negligible", "Too small to matter: at most 0.18 points apart.")
    real = only_pair(split(30, 5))
    assert (real.verdict, real.heading) == ("negligible", "Real, but too small to matter: at most 0.39 points apart.")


def test_perhaps_less_than_the_margin() -> None:
    pair = only_pair(split(110, 50))
    assert (pair.verdict, pair.heading) == (
        "a_better",
        "CNN is better than FC by 0.6 points, perhaps by less than the margin.",
    )
    assert "would happen once in " in pair.says


def test_identical_answers_come_before_the_margin() -> None:
    """Ten images can't show any margin, but equal answers are equal."""
    pair = only_pair(split(0, 0, 3, n=10))
    assert (pair.verdict, pair.heading, pair.p_value) == ("negligible", "Identical predictions.", 1)
    assert pair.notes == []
    assert pair.num_images_needed is pair.smallest_detectable_difference is None


def test_right_on_the_same_images_is_not_identical() -> None:
    a, b = split(0, 0, 3)
    other = a.known.predicted.copy()
    other[0] = 5
    pair = only_pair([a, replace(b, predictions=predictions_of(a.known.labels, other))])
    assert (pair.both_wrong, pair.same_wrong_answer) == (3, 2)
    assert pair.heading == "Too small to matter: at most 0.04 points apart."
    assert pair.says_not.startswith("That the nets are the same: their wrong predictions differ.")


def test_too_few_images_for_the_margin() -> None:
    pair = only_pair(split(0, 1, n=764))
    assert pair.notes[-1] == (
        "With 764 test images no result can show that a difference is below 0.5 points; that takes 765."
    )
    assert pair.verdict == "inconclusive"
    assert only_pair(split(0, 1, n=5000)).notes == []


def test_other_images() -> None:
    a, b = split(574, 91)
    pair = only_pair([a, replace(b, test_fingerprint="others")])
    assert (pair.verdict, pair.heading) == ("not_comparable", "Not comparable: FC was tested on other images.")
    assert pair.difference is None
    assert pair.interval is None
    assert pair.p_value is None


def test_a_run_without_an_epoch() -> None:
    a, b = split(574, 91)
    waiting = replace(b, epoch=None, predictions=None, status="queued")
    result = compare([a, waiting], {})
    assert (result.pairs[0].verdict, result.pairs[0].heading) == (
        "not_comparable",
        "Not comparable yet: FC has no finished epoch.",
    )
    assert (result.num_tested, result.recipes[0].verdict, result.groups[1].runs) == (0, None, [])


def test_one_run_and_none() -> None:
    result = compare(split(5, 5)[:1], {})
    assert (result.pairs, result.recipes, result.config_differences, result.fairness) == ([], [], [], [])
    assert len(result.groups) == len(result.names) == 1
    assert compare([], {}).pairs == []


def test_the_margin_is_the_askers() -> None:
    assert only_pair(split(393, 394), margin=0.006).verdict == "negligible"
    result = compare(split(393, 394), {}, margin=0.006)
    assert result.notes == ["One pair, nothing to correct for.", "Margin chosen by you: 0.6 points, default 0.5."]


@pytest.mark.parametrize(
    ("options", "words"), [({"margin": 0.0}, "margin"), ({"margin": 0.6}, "margin"), ({"base": "x"}, "base run")]
)
def test_questions_that_make_no_sense(options: dict[str, Any], words: str) -> None:
    with pytest.raises(CompareError, match=words):
        compare(split(5, 5), {}, **options)


def test_a_run_named_twice() -> None:
    with pytest.raises(CompareError, match="twice"):
        compare(split(5, 5)[:1] * 2, {})


def test_agreement_and_kappa_count_equal_answers_right_or_wrong() -> None:
    a, b = split(574, 91, 129)
    pair = only_pair([a, b])
    assert pair.agreement == pytest.approx(1 - 665 / 10_000)
    chance = sum(np.mean(a.known.predicted == k) * np.mean(b.known.predicted == k) for k in range(10))
    assert pair.kappa is not None
    assert pair.kappa.value == pytest.approx((pair.agreement - chance) / (1 - chance))
    assert pair.kappa.interval[0] < pair.kappa.value < pair.kappa.interval[1]
    assert only_pair(split(0, 0, 3)).kappa.value == 1  # type: ignore[union-attr]


def test_equivalence_within_the_margin() -> None:
    pair = only_pair(split(20, 15))
    assert pair.verdict == "negligible"
    assert pair.equivalence_p_value == pytest.approx(float(statistics.tost_paired(20, 15, 10_000, 0.005)))
    assert (pair.equivalence_p_value or 1) < 0.05
    far = only_pair(split(574, 91))
    assert far.equivalence_p_value is not None
    assert far.equivalence_p_value > 0.99


# Single runs ----------------------------------------------------------------------------------------------------------


def test_accuracies_are_counted_from_the_answers() -> None:
    runs = [replace(run, reported_correct=9_780 if run.id == "cnn" else 9_298) for run in split(574, 91, 129)]
    found = statistics.calibration_error(np.full(10_000, 0.9, np.float32), runs[0].correct)
    first, second = compare(runs, {}).answers
    assert (first.num_correct, first.num_images, first.accuracy, first.defect) == (9_780, 10_000, 0.978, "")
    assert (first.calibration_error, first.calibration_interval) == (found.value, (found.low, found.high))
    assert found.value > 0.05
    assert first.interval == pytest.approx((0.9750, 0.9807), abs=1e-4)
    assert (second.num_correct, second.reported_correct) == (9_297, 9_298)
    assert "stored predictions of epoch 5 give 9,297 of 10,000 right, but the log says 9,298" in second.defect
    assert second.calibration_error != first.calibration_error


def test_the_best_of_several_is_optimistic() -> None:
    random = np.random.default_rng(3)
    runs = [make_run(f"r{i}", random.random(1000) < 0.1, n=1000) for i in range(6)]
    result = compare(runs, {})
    best = result.best_of
    assert best is not None
    assert best.accuracy == max(run.accuracy for run in runs)
    assert (best.num_runs, best.run) == (6, max(runs, key=lambda run: run.accuracy).id)
    assert best.optimism == statistics.best_of_n_optimism(np.stack([run.correct for run in runs]))
    assert best.optimism > 0
    assert best.text in result.notes
    assert "is the best of 6 runs" in best.text
    assert "is optimistic, by about" in best.text
    assert compare(runs[:2], {}).best_of is None
    others = [replace(run, test_fingerprint="others") for run in runs[2:4]]
    assert compare([*runs[:2], *others], {}).best_of is None


def test_a_clear_winner_has_no_optimism_to_show() -> None:
    runs = [make_run("a", np.r_[0:10]), make_run("b", np.r_[0:3000]), make_run("c", np.r_[0:4000])]
    assert compare(runs, {}).notes[-1].endswith("random halves of the images show no drop.")


# Families ------------------------------------------------------------------------------------------------------------


def test_all_pairs_in_order_or_those_against_the_base() -> None:
    runs = [make_run(name, np.r_[0:50]) for name in "abc"]
    assert [(p.a, p.b) for p in compare(runs, {}).pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    result = compare(runs, {}, base="b")
    assert [(p.a, p.b) for p in result.pairs] == [("a", "b"), ("c", "b")]
    assert [(r.a, r.b) for r in result.recipes] == [("a", "b"), ("c", "b")]
    assert (result.num_tested, result.level) == (2, 0.975)


def test_a_family_is_corrected() -> None:
    """3 pairs, two of them the same difference: p times 3, then times 2 lifted to the one before."""
    runs = [make_run("a", np.r_[0:100]), make_run("b", np.r_[0:160]), make_run("c", np.r_[0:160])]
    result = compare(runs, {})
    raw = [pair.p_value for pair in result.pairs]
    assert raw[0] is not None
    assert [pair.p_value_adjusted for pair in result.pairs] == pytest.approx([3 * raw[0], 3 * raw[0], 1])
    assert result.level == pytest.approx(1 - 0.05 / 3)
    assert result.notes[0].startswith("3 pairs are shown, so each interval has the level 98.33 %")


def test_the_correction_can_undo_a_finding() -> None:
    a, b = split(60, 35)
    assert only_pair([a, b], margin=0.0001).verdict == "a_better"
    others = [make_run(f"x{i}", np.r_[0:60]) for i in range(8)]
    pair = compare([a, b, *others], {}, margin=0.0001).pairs[0]
    assert pair.p_value is not None
    assert pair.p_value < 0.05
    assert pair.verdict == "inconclusive"


def test_what_can_not_be_compared_is_not_in_the_family() -> None:
    runs = [*split(574, 91), make_run("z", np.r_[0:5], test_fingerprint="others")]
    result = compare(runs, {})
    assert result.num_tested == 1
    assert [pair.verdict for pair in result.pairs] == ["a_better", "not_comparable", "not_comparable"]


def test_thirty_runs() -> None:
    random = np.random.default_rng(0)
    runs = [make_run(f"r{i}", random.random(2000) < 0.1, n=2000) for i in range(30)]
    result = compare(runs, {})
    assert len(result.pairs) == result.num_tested == 435
    for i, j in [(0, 1), (7, 23), (28, 29)]:
        a, b = runs[i], runs[j]
        counts = count_pair(a, b, with_kappa=False)
        assert counts.both_correct == sum(x and y for x, y in zip(a.correct, b.correct, strict=True))
        assert counts.same_predictions == sum(x == y for x, y in zip(a.known.predicted, b.known.predicted, strict=True))


runs_of_images = st.lists(st.lists(st.integers(0, 2), min_size=12, max_size=12), min_size=2, max_size=5)


@settings(max_examples=60, deadline=None)
@given(runs_of_images, st.sampled_from([0.001, 0.005, 0.2]))
def test_invariants(answers: list[list[int]], margin: float) -> None:
    labels = np.arange(12) % 3
    base = make_run("r", [])
    runs = [
        replace(
            base,
            id=f"r{i}",
            name=f"R{i}",
            group=f"g{i}",
            predictions=predictions_of(labels, np.array(row, np.uint16)),
        )
        for i, row in enumerate(answers)
    ]
    forward, backward = compare(runs, {}, margin=margin), compare(runs[::-1], {}, margin=margin)
    mirrored = {(pair.b, pair.a): pair for pair in backward.pairs}
    flipped = {"a_better": "b_better", "b_better": "a_better"}
    for pair in forward.pairs:
        assert pair.both_correct + pair.only_a_correct + pair.only_b_correct + pair.both_wrong == pair.num_images
        assert 0 <= pair.same_wrong_answer <= pair.both_wrong
        assert pair.difference is not None
        assert pair.interval is not None
        assert pair.p_value is not None
        assert pair.p_value_adjusted is not None
        assert pair.interval[0] <= pair.difference <= pair.interval[1]
        assert 0 <= pair.p_value <= pair.p_value_adjusted <= 1
        assert pair.heading
        assert pair.says
        assert pair.says_not
        other = mirrored[pair.a, pair.b]
        assert other.verdict == flipped.get(pair.verdict, pair.verdict)
        assert other.p_value_adjusted == pair.p_value_adjusted
        assert other.interval == (-pair.interval[1], -pair.interval[0])
    assert as_json.validate_json(as_json.dump_json(forward)) == forward


@given(st.floats(-1, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(1e-4, 0.5))
def test_judge_is_exhaustive(difference: float, down: float, up: float, p: float, margin: float) -> None:
    low, high = difference - down, difference + up
    verdict = judge(difference, low, high, p, margin)
    if -margin <= low and high <= margin:
        assert verdict == "negligible"
    elif p <= 0.05 and not low <= 0 <= high:
        assert verdict == ("a_better" if difference > 0 else "b_better")
    else:
        assert verdict == "inconclusive"


# Names ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_names", "seeds", "expected"),
    [
        (["FC seed 0", "CNN seed 0"], [0, 0], ["FC", "CNN"]),
        (["FC seed 0", "FC seed 1"], [0, 1], ["FC seed 0", "FC seed 1"]),
        (["FC", "FC"], [0, 1], ["FC seed 0", "FC seed 1"]),
        (["FC", "FC"], [3, 3], ["FC (A)", "FC (B)"]),
        (["", "tuned, seed 4"], [0, 4], ["FC", "tuned"]),
        (["seed 4", "x"], [4, 0], ["seed 4", "x"]),
    ],
)
def test_names_are_short_and_differ(given_names: list[str], seeds: list[int], expected: list[str]) -> None:
    runs = [
        make_run(f"r{i}", [], name=name, seed=seed)
        for i, (name, seed) in enumerate(zip(given_names, seeds, strict=True))
    ]
    assert list(compare(runs, {}).names.values()) == expected


def test_letters_of_the_page_are_used() -> None:
    runs = [make_run("a", [], name="FC", letter="C"), make_run("b", [], name="FC", letter="F")]
    result = compare(runs, {})
    assert list(result.names.values()) == [group.name for group in result.groups] == ["FC (C)", "FC (F)"]


def test_letters_go_on_after_z() -> None:
    assert [letter(i) for i in (0, 25, 26, 49, 51, 52)] == ["A", "Z", "AA", "AX", "AZ", "BA"]


# Recipes -------------------------------------------------------------------------------------------------------------


def repeats(
    group: str, errors: list[int], *, seeds: list[int] | None = None, start: int = 0, **changed: Any
) -> list[ComparedRun]:
    """One run per seed with so many errors."""
    chosen = seeds if seeds is not None else list(range(len(errors)))
    return [
        make_run(
            f"{group}{seed}",
            np.r_[start : start + count],
            group=group,
            seed=seed,
            name=f"{group} seed {seed}",
            **changed,
        )
        for seed, count in zip(chosen, errors, strict=True)
    ]


def recipe_of(a: list[ComparedRun], b: list[ComparedRun], **options: Any) -> Recipe:
    groups = {a[0].group: a, b[0].group: b}
    (recipe,) = compare([a[0], b[0]], groups, **options).recipes
    return recipe


def test_equal_seeds_are_paired() -> None:
    recipe = recipe_of(repeats("CNN", [500, 520, 560]), repeats("FC", [1300, 1330, 1350]))
    assert (recipe.method, recipe.n_a, recipe.n_b, recipe.verdict) == ("paired t", 3, 3, "a_better")
    assert recipe.heading == "CNN is the better recipe by 8.0 points."
    assert recipe.explanation == (
        "3 seeds each, after 5 epochs. CNN got 94.73 % on average, FC 86.73 %. "
        "The seeds are the same, so they are compared in pairs."
    )
    assert recipe.interval is not None
    assert recipe.interval[0] < 0.08 < recipe.interval[1]


def test_other_seeds_are_not() -> None:
    recipe = recipe_of(repeats("CNN", [500, 520, 560]), repeats("FC", [1300, 1330], seeds=[0, 7]))
    assert (recipe.method, recipe.n_a, recipe.n_b) == ("Welch t", 3, 2)
    assert "3 and 2 seeds, after 5 epochs." in recipe.explanation


def test_images_can_decide_the_width() -> None:
    recipe = recipe_of(repeats("CNN", [500, 501, 502]), repeats("FC", [560, 561, 562], start=5000))
    assert recipe.from_images
    assert recipe.verdict == "inconclusive"
    assert "All seeds share one test set." in recipe.notes[0]


def test_one_seed_is_no_recipe() -> None:
    recipe = recipe_of(repeats("CNN", [500]), repeats("FC", [900]))
    assert (recipe.verdict, recipe.heading, recipe.further_seeds) == (None, "One seed each: no spread to show.", 4)
    assert recipe.interval is None
    mixed = recipe_of(repeats("CNN", [500]), repeats("FC", [900, 901]))
    assert (mixed.verdict, mixed.heading) == (None, "Too few seeds: two of each are needed.")


def test_newest_finished_run_of_each_seed() -> None:
    old, new = (
        make_run("old", np.r_[0:900], group="FC", finished_at="2025-01-01T00:00:00.000Z"),
        make_run("new", np.r_[0:800], group="FC", finished_at="2025-01-02T00:00:00.000Z"),
    )
    failed = make_run("bad", np.r_[0:700], group="FC", seed=1, status="failed")
    fine = make_run("fine", np.r_[0:810], group="FC", seed=2)
    (group,) = compare([old], {"FC": [new, old, failed, fine]}).groups
    assert (group.runs, group.seeds, group.accuracies) == (["new", "fine"], [0, 2], [0.92, 0.919])
    assert (group.num_seeds, group.num_failed, group.summary) == (3, 1, "2 of 3 finished, 1 failed.")
    assert group.interval is not None
    assert group.interval[0] < group.mean < group.interval[1]  # type: ignore[operator]


def test_failed_repeats_are_said() -> None:
    fc = [*repeats("FC", [1300, 1330, 1350, 1340]), make_run("bad", [], group="FC", seed=9, status="failed")]
    recipe = recipe_of(repeats("CNN", [500, 520, 560, 530]), fc)
    assert recipe.num_failed == 1
    assert recipe.explanation.endswith("FC: 4 of 5 finished, 1 failed.")


def test_one_epoch_for_all() -> None:
    runs = [*repeats("FC", [900, 910]), make_run("late", np.r_[0:5], group="FC", seed=5, epoch=1)]
    (group,) = compare([runs[0]], {"FC": runs}).groups
    assert (group.epoch, group.seeds, group.num_other_epoch) == (5, [0, 1], 1)
    assert group.summary == "3 of 3 finished, 1 left out, at another epoch."
    best = compare([runs[0]], {"FC": runs}, at="best")
    assert (best.groups[0].epoch, best.groups[0].seeds) == (None, [0, 1, 5])
    assert "optimistic" in best.notes[-1]


def test_recipes_on_other_images() -> None:
    recipe = recipe_of(repeats("CNN", [500, 510]), repeats("FC", [900, 905], test_fingerprint="others"))
    assert recipe.verdict == "not_comparable"


def test_two_runs_of_one_recipe() -> None:
    runs = repeats("FC", [900, 1200])
    result = compare(runs, {"FC": runs})
    assert result.recipes == []
    assert result.pairs[0].verdict == "a_better"
    assert result.pairs[0].says_not.startswith("That one recipe is better. Both runs are repeats of one recipe")
    assert result.fairness[-1] == "Only the seed differs: the runs are repeats of one recipe."


def test_the_pair_says_what_the_seeds_say() -> None:
    cnn, fc = repeats("CNN", [500, 520, 560]), repeats("FC", [1300, 1330, 1350])
    groups = {"CNN": cnn, "FC": fc}
    assert (
        "Here they agree: with 3 seeds each the recipe CNN leads by"
        in compare([cnn[0], fc[0]], groups).pairs[0].says_not
    )
    worst = make_run("odd", np.r_[0:1500], group="CNN", seed=0, name="CNN")
    pair = compare([worst, fc[0]], groups).pairs[0]
    assert pair.verdict == "b_better"
    assert "Here they agree" not in pair.says_not
    assert "the recipe CNN leads by" in pair.says_not


def test_more_seeds_are_asked_for_by_power() -> None:
    recipe = recipe_of(repeats("CNN", [800, 950, 1100]), repeats("FC", [1005, 935, 900]))
    assert recipe.verdict == "inconclusive"
    assert recipe.further_seeds
    assert any(f"{recipe.further_seeds} more seed" in note for note in recipe.notes)


def at_hours(runs: list[ComparedRun], created: list[int], sweep: str | None = "one") -> list[ComparedRun]:
    """The runs, created in these hours of a day and finished half an hour later."""
    return [
        replace(run, created_at=f"T{hour:02}:00", finished_at=f"T{hour:02}:30", sweep=sweep)
        for run, hour in zip(runs, created, strict=True)
    ]


def test_a_second_look_is_said() -> None:
    cnn, fc = repeats("CNN", [500, 520, 510, 530]), repeats("FC", [1300, 1330, 1310, 1320])
    recipe = recipe_of(at_hours(cnn, [1, 1, 2, 2]), at_hours(fc, [1, 1, 2, 2]))
    assert recipe.false_alarm_rate == 0.083
    assert "with 2 looks the chance of a false alarm is 8 %, not 5 %" in recipe.notes[-1]
    third = recipe_of(at_hours(cnn, [1, 1, 2, 3]), at_hours(fc, [1, 1, 2, 3]))
    assert "with 3 looks the chance of a false alarm is 11 %" in third.notes[-1]


@pytest.mark.parametrize(
    ("cnn_hours", "fc_hours", "sweep"),
    [
        ([1, 1, 1, 1], [1, 1, 1, 1], "one"),
        ([1, 1, 1, 1], [2, 2, 2, 2], "one"),  # the second recipe came after the first was done: nothing to look at
        ([1, 2, 2, 2], [1, 2, 2, 2], "one"),  # one seed each shows no spread
        ([1, 2, 3, 4], [1, 2, 3, 4], None),  # a shell's loop over seeds is a plan
    ],
)
def test_one_look(cnn_hours: list[int], fc_hours: list[int], sweep: str | None) -> None:
    cnn, fc = repeats("CNN", [500, 520, 510, 530]), repeats("FC", [1300, 1330, 1310, 1320])
    recipe = recipe_of(at_hours(cnn, cnn_hours, sweep), at_hours(fc, fc_hours, sweep))
    assert recipe.false_alarm_rate == 0.05
    assert not any("looks" in note for note in recipe.notes)


def test_several_recipes_are_corrected_too() -> None:
    lists = [
        repeats(name, errors)
        for name, errors in [("A", [500, 510, 530]), ("B", [600, 640, 650]), ("C", [590, 650, 655])]
    ]
    recipes = compare([runs[0] for runs in lists], {runs[0].group: runs for runs in lists}).recipes
    assert len(recipes) == 3
    assert all(r.p_value_adjusted >= r.p_value for r in recipes)  # type: ignore[operator]


# Configuration and budget --------------------------------------------------------------------------------------------


def test_config_differences_and_budget() -> None:
    result = compare(split(574, 91, 129), {})
    assert [(d.field, d.values, d.is_factor) for d in result.config_differences] == [
        ("model", ["cnn", "fc"], True),
        ("width", [6, 8], False),
    ]
    assert [row.verdict for row in result.budget] == ["0.3 % apart", "equal", "", "CNN 12 × as long"]
    assert result.fairness == [
        "Comparable: the same 10,000 test images in the same order, the same normalization.",
        "One factor differs, model: the difference can be assigned to it.",
    ]


def test_what_is_not_recorded_equals_nothing() -> None:
    runs = [make_run("a", []), make_run("b", [])]
    old = {name: value for name, value in runs[1].config.items() if name not in ("flip_averaging", "progressive_size")}
    both = {name: value for name, value in runs[0].config.items() if name != "progressive_size"}
    result = compare([replace(runs[0], config=both), replace(runs[1], config=old)], {})
    (difference,) = result.config_differences  # what both lack can't be compared
    assert (difference.field, difference.is_known) == ("flip_averaging", [True, False])
    assert difference.values == [False, None]


def test_what_follows_from_another_field_is_no_factor() -> None:
    runs = [make_run("a", []), make_run("b", [], config={"model": "fc", "optimizer": "adam", "device": "cuda"})]
    differences = {d.field: d.is_factor for d in compare(runs, {}).config_differences}
    assert differences == {"optimizer": True, "momentum": False, "nesterov": False, "device": False}
    runs = [make_run("a", []), make_run("b", [], config={"model": "fc", "width": 16, "learning_rate": 0.1})]
    result = compare(runs, {})
    assert {d.field: d.values for d in result.config_differences} == {"width": [8, 16], "learning_rate": [0.01, 0.1]}
    assert "2 factors differ (width, learning_rate)" in result.fairness[-1]


def test_other_images_and_permutations_in_the_fairness_list() -> None:
    permuted = {"model": "fc", "permute_pixels": True}
    runs = [make_run("a", [], config=permuted), make_run("b", [], config=permuted)]
    assert "the same pixel permutation" in compare(runs, {}).fairness[0]
    assert compare(runs, {}).fairness[1] == "No choice differs: the runs are repeats of one configuration."
    runs = [
        make_run("a", []),
        make_run("b", [], test_fingerprint="others", config={"model": "fc", "normalization": "half"}),
    ]
    assert compare(runs, {}).fairness[0] == "Not all runs were tested on the same images."


@pytest.mark.parametrize(
    ("seconds", "verdict"),
    [
        ([1, 1.2], "20.0 % apart"),
        ([1, 1.0001], "< 0.1 % apart"),
        ([2, 5], "B 2.5 × as long"),
        ([0, 5], ""),
        ([1, 5, 20], "up to 20 × apart"),
        ([1, 1.1, 1], "up to 10.0 % apart"),
        ([1, None], ""),
    ],
)
def test_budget_words(seconds: list[float | None], verdict: str) -> None:
    runs = [make_run("abc"[i], [], train_seconds=value) for i, value in enumerate(seconds)]
    assert compare(runs, {}).budget[-1].verdict == verdict


# Odd input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("margin", [1e-320, 1e-200, 1e-7, 0.0, -1.0, float("nan"), float("inf"), 0.6])
def test_a_margin_out_of_bounds_is_refused(margin: float) -> None:
    with pytest.raises(CompareError, match=r"at least 0\.000001 and at most 0\.5"):
        compare(split(20, 15), {}, margin=margin)


def test_the_smallest_margin_has_an_answer() -> None:
    assert only_pair(split(20, 15), margin=1e-6).num_images_needed


def test_unfinished_runs_explain_nothing_by_their_configurations() -> None:
    cnn, fc = split(574, 91)
    short = replace(cnn, status="running", epoch=2)
    words = compare([short, fc], {}).fairness[-1]
    assert words == (
        "1 run is not finished, and the runs are compared after 2 to 5 epochs: the difference can't be assigned to their "
        "configurations. Compare them at one epoch."
    )
    assert "One factor differs" in compare([replace(short, epoch=5), fc], {}).fairness[-1]
    assert "One factor differs" in compare([replace(short, status="finished"), fc], {}).fairness[-1]  # stopped early


# Names ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "left"),
    [
        (
            ["try, learning_rate 0.1, width 4", "try, learning_rate 0.2, width 4"],
            ["learning_rate 0.1", "learning_rate 0.2"],
        ),
        (["FC", "FC, wide"], ["FC", "FC, wide"]),  # nothing would be left of the first
        (["FC, wide", "FC, wide"], ["FC, wide", "FC, wide"]),
        (["FC", "CNN"], ["FC", "CNN"]),
        (["FC, wide, seed 4", "FC, wide, seed 0"], ["FC, wide, seed 4", "FC, wide, seed 0"]),  # seeds alone say little
    ],
)
def test_names_are_told_apart_by_what_they_do_not_share(names: list[str], left: list[str]) -> None:
    assert without_shared_parts(names) == left
