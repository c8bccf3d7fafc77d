"""The form of a new run: text into sweeps and back, lists and ranges, what it equals as a command and as a call."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest

from app.forms.read import (
    Typed,
    form_field,
    from_preset,
    from_run,
    kind_of,
    not_applying,
    read_form,
    request_of,
    values_of,
    with_query,
    without_faults,
)
from app.forms.same_as import same_as, shortened
from app.forms.show import choosing_by_test, controls, seeds_sentence, sentence
from app.schemas import SweepIn
from trainer.config import FIELDS, MODELS, FieldProblem
from trainer.presets import PRESETS


def typed(preset: str = "mnist-cnn", **query: str) -> Typed:
    return with_query(from_preset(PRESETS[preset]), query)


def sweep_of(preset: str = "mnist-cnn", **query: str) -> SweepIn:
    wish = request_of(typed(preset, **query))
    assert wish.sweep is not None, wish.problems
    return wish.sweep


def problems_of(**query: str) -> dict[str, str]:
    return {problem.field: problem.message for problem in request_of(typed(**query)).problems}


def test_every_field_has_a_control_from_the_config() -> None:
    shown = controls(typed())
    assert list(shown) == list(FIELDS)
    assert shown["learning_rate"].title == FIELDS["learning_rate"].title
    assert shown["batch_size"].unit == "images"
    assert [c.value for c in shown["model"].choices] == [*MODELS]
    assert [c.value for c in shown["model"].choices if c.chosen] == ["cnn"]
    assert (shown["width"].placeholder, shown["width"].unit) == ("6", "feature maps")
    assert {kind_of(name) for name in FIELDS} == {"int", "float", "bool", "choice", "text"}


@pytest.mark.parametrize("preset", PRESETS.values(), ids=list(PRESETS))
def test_a_preset_fills_in_exactly_what_it_names(preset: Any) -> None:
    sweep = sweep_of(preset.name)
    assert sweep.grid == preset.grid
    for name, value in preset.base.items():
        if name not in preset.grid:
            assert sweep.base[name] == value
    assert shortened(sweep, preset).model_dump(exclude_defaults=True) == {"preset": preset.name}


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.01", [0.01]),
        ("0.003, 0.01, 0.03", [0.003, 0.01, 0.03]),
        ("0.003,0.01", [0.003, 0.01]),
        ("0.01; 0.02", [0.01, 0.02]),
        ("0.01，0.02", [0.01, 0.02]),
        ("1e-3", [0.001]),
        ("0.01, 0.01", [0.01]),
        ("", [None]),
        ("fast", ["fast"]),
        ("0, 5", [0.0, 5.0]),
    ],
)
def test_numbers_and_lists(text: str, values: list[Any]) -> None:
    assert values_of("learning_rate", text) == values


@pytest.mark.parametrize(
    ("text", "values"), [("0..4", [0, 1, 2, 3, 4]), ("7", [7]), ("1, 3..4", [1, 3, 4]), ("3..3", [3])]
)
def test_ranges(text: str, values: list[int]) -> None:
    assert values_of("seed", text) == values


@pytest.mark.parametrize(
    ("field", "text", "part"),
    [
        ("learning_rate", "0,01", "Write 0.01 for one number"),
        ("batch_size", "10,000", "Write 10000 for one number"),
        ("seed", "4..0", "Write the smaller number first: 0..4"),
        ("seed", "0..5000", "at most 1,000 values"),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(field: str, text: str, part: str) -> None:
    assert part in problems_of(**{field: text})[field]


def test_empty_fields_say_what_is_usual() -> None:
    assert problems_of(learning_rate="")["learning_rate"] == "Must not be empty. The usual value is 0.01."
    assert problems_of(dataset="", model="") == {"dataset": "Choose a data set.", "model": "Choose a model."}
    assert "width" not in problems_of(width="")


def test_repeats_must_be_a_number() -> None:
    assert "at least 1" in problems_of(repeats="0")["repeats"]
    assert "whole number" in problems_of(repeats="many")["repeats"]


def test_fields_that_do_not_apply_are_left_out() -> None:
    assert not_applying(typed()) == {"peak_at", "permutation_seed"}
    assert not_applying(typed(optimizer="adam")) == {"peak_at", "permutation_seed", "momentum", "nesterov"}
    assert not_applying(typed(optimizer="sgd, adam", schedule="one_cycle")) == {"permutation_seed"}
    sweep = sweep_of(optimizer="adam", momentum="0.9")
    assert "momentum" not in sweep.base
    assert not controls(typed(optimizer="adam"))["momentum"].applies
    assert not_applying(typed(optimizer="magic")) == set()


def test_a_sent_form_is_read_with_its_boxes() -> None:
    lists = {"dataset": ["mnist"], "model": ["fc", "cnn"], "several": ["model", "permute_pixels"], "nesterov": ["true"]}
    read = read_form({"preset": "mnist-cnn", "epochs": " 5 "}, lists)
    assert (read.values["model"], read.values["permute_pixels"]) == ("fc, cnn", "false, true")
    assert (read.values["nesterov"], read.values["deterministic"], read.values["epochs"]) == ("true", "false", "5")
    one = read_form({}, {"model": ["fc", "cnn"], "permute_pixels": ["false", "true"]})
    assert (one.values["model"], one.values["permute_pixels"], one.preset) == ("fc", "false", None)


def test_an_earlier_run_fills_in_all_its_fields() -> None:
    config = sweep_of(optimizer="adam", learning_rate="0.001", width="12").base | {"momentum": None}
    again = from_run(config, run_id="abc", name="CNN", tags=["a", "b"])
    assert (again.values["learning_rate"], again.values["width"], again.values["momentum"]) == ("0.001", "12", "0.5")
    assert (again.values["name"], again.values["tags"], again.origin) == ("CNN", "a, b", "abc")
    assert with_query(again, {"repeats": "4", "seed": "5", "from": "abc"}).values["seed"] == "5"


def test_faulty_fields_go_back_to_their_defaults() -> None:
    healed = without_faults(typed(batch_size="0", epochs="5"), [FieldProblem(field="base.batch_size", message="no")])
    assert (healed.values["batch_size"], healed.values["epochs"]) == ("64", "5")


@pytest.mark.parametrize(
    ("path", "name"),
    [("grid.learning_rate[2]", "learning_rate"), ("base.epochs", "epochs"), ("seed", "seed"), ("tags.0", "tags")],
)
def test_problems_find_their_field(path: str, name: str) -> None:
    assert form_field(path) == name
    if name in FIELDS:
        shown = controls(typed(), [FieldProblem(field=path, message="No."), FieldProblem(field=path, message="No.")])
        assert shown[name].problems == ["No."]


# In words ------------------------------------------------------------------------------------------------------------


def test_the_sentence_counts_what_varies() -> None:
    sweep = sweep_of(learning_rate="0.003, 0.01, 0.03", repeats="2", schedule="cosine", epochs="5")
    assert sentence(sweep) == "3 learning rates × 2 seeds, cosine, 5 epochs each."
    assert sentence(sweep_of()) == "CNN on mnist, 1 epoch."
    assert sentence(sweep_of("mnist-fc-against-cnn")) == "2 models × plain and permuted, 1 epoch each."
    assert sentence(sweep_of(epochs="1, 2", seed="0..4")) == "2 values of Epochs × 5 seeds."


@pytest.mark.parametrize(
    ("repeats", "seed", "words"),
    [
        ("1", "0", "Seed 0 will be used."),
        ("2", "0", "Seeds 0 and 1 will be used."),
        ("5", "3", "Seeds 3 to 7 will be used."),
        ("x", "0", ""),
        ("0", "0", ""),
        ("2", "0..4", ""),
    ],
)
def test_seeds_in_words(repeats: str, seed: str, words: str) -> None:
    assert seeds_sentence(typed(repeats=repeats, seed=seed)) == words


def test_choosing_by_test_accuracy_is_noticed() -> None:
    assert choosing_by_test(sweep_of(learning_rate="0.01, 0.1", repeats="3")) == 2
    assert choosing_by_test(sweep_of(learning_rate="0.01, 0.1", validation_fraction="0.1")) == 0
    assert choosing_by_test(sweep_of("mnist-fc-against-cnn")) == 0


# The same elsewhere --------------------------------------------------------------------------------------------------


def test_the_command_says_only_what_differs() -> None:
    sweep = sweep_of(learning_rate="0.003, 0.01, 0.03", repeats="2", schedule="cosine", epochs="5", name="CNN rates")
    assert same_as(sweep, "mnist-cnn").command == (
        "runoff train --preset mnist-cnn \\\n  --epochs 5 --schedule cosine \\\n  --learning-rate 0.003,0.01,0.03 \\\n"
        '  --repeats 2 --name "CNN rates"'
    )


def test_the_command_can_be_read_back() -> None:
    sweep = sweep_of(batch_size="64, 128", learning_rate="0, 5")
    words = shlex.split(same_as(sweep, "mnist-cnn").command.replace("\\\n", " "))
    assert values_of("batch_size", words[words.index("--batch-size") + 1]) == [64, 128]
    assert values_of("learning_rate", words[words.index("--learning-rate") + 1]) == [0, 5]


def test_a_preset_that_was_undone_is_not_named() -> None:
    sweep = sweep_of("mnist-fc-against-cnn", model="fc", permute_pixels="false")
    same = same_as(sweep, "mnist-fc-against-cnn")
    assert same.command == "runoff train --dataset mnist \\\n  --model fc"
    changed = same_as(sweep_of("mnist-fc", model="cnn"), "mnist-fc").command
    assert changed == "runoff train --preset mnist-fc \\\n  --model cnn"


def test_a_default_that_undoes_a_preset_is_said() -> None:
    short = shortened(sweep_of("cifar10-lenet", epochs="1"), PRESETS["cifar10-lenet"])
    assert short.base == {"epochs": 1}


def test_names_survive_the_shell() -> None:
    name = 'it\'s "1" $HOME'
    words = shlex.split(same_as(sweep_of(name=name, tags="a b"), "mnist-cnn").command.replace("\\\n", " "))
    assert words[-4:] == ["--name", name, "--tag", "a b"]


def test_the_call_is_valid_json_and_means_the_same() -> None:
    sweep = sweep_of(learning_rate="0.003, 0.01", repeats="2", epochs="5", name="Ä", tags="x")
    first, body = same_as(sweep, "mnist-cnn").call.split("\n", 1)
    assert first == "POST /api/v1/sweeps"
    assert json.loads(body) == {
        "preset": "mnist-cnn",
        "base": {"epochs": 5},
        "grid": {"learning_rate": [0.003, 0.01]},
        "repeats": 2,
        "name": "Ä",
        "tags": ["x"],
    }
    first, body = same_as(sweep_of(width="12"), None).call.split("\n", 1)
    assert (first, json.loads(body)) == ("POST /api/v1/runs", {"dataset": "mnist", "model": "cnn", "width": 12})
