"""``RunConfig``: every sentence about what was typed wrong, the canonical form, and hashes that never change."""

from __future__ import annotations

from typing import Any

import pytest

from trainer.config import (
    FIELDS,
    GROUPS,
    ConfigError,
    RunConfig,
    canonical,
    config_hash,
    group_hash,
    parse_config,
    resolved_width,
)
from trainer.image_rules import check_data

BASE = {"dataset": "mnist", "model": "cnn"}
PLAIN = "c203a49bb8d5"  # of the config of BASE: stored in every run, so it may never change
OTHER = ("a1266c1389ae", "a4c0da54ffb8")


def problems(**fields: Any) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        parse_config({**BASE, **fields})
    return {problem.field: problem.message for problem in caught.value.problems}


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("epochs", 0, "Must be at least 1. You typed 0."),
        ("epochs", 10_001, "Must be at most 10,000. You typed 10001."),
        ("learning_rate", 0, "Must be more than 0. You typed 0."),
        ("momentum", 1.0, "Must be less than 1. You typed 1."),
        ("learning_rate", float("nan"), "Must be a finite number. You typed nan."),
        ("learning_rate", float("inf"), "Must be a finite number. You typed inf."),
        ("schedule", "linear", "Must be one of constant, cosine, one_cycle. You typed linear."),
        ("epochs", "many", "Must be a whole number. You typed many."),
        ("epochs", 1.5, "Must be a whole number. You typed 1.5."),
        ("epochs", True, "Must be a number. You typed true."),
        ("epochs", None, "Must be a whole number. You typed null."),
        ("learning_rate", "fast", "Must be a number. You typed fast."),
        ("permute_pixels", "perhaps", "Must be true or false. You typed perhaps."),
        ("dataset", 5, "Must be text. You typed 5."),
        ("device", "gpu", "Must be auto, cpu, cuda, cuda:0 and so on, or mps. You typed gpu."),
        (
            "dataset",
            "My Set",
            "Must be lowercase letters, digits and hyphens, at most 64, and begin with a letter or digit. You typed My Set.",
        ),
        ("lerning_rate", 1, "Unknown field. Did you mean learning_rate?"),
        ("seed", 2**32, "Must be at most 4,294,967,295. You typed 4294967296."),
        ("epochs", "x" * 100, "Must be a whole number. You typed " + "x" * 37 + "...."),
        ("nesterov", True, "Nesterov needs momentum. Set momentum above 0, such as 0.9."),
        (
            "progressive_size",
            True,
            "Progressive size works with vgg and vgg16 only. Choose one of these, or turn it off.",
        ),
        (
            "early_stopping_patience",
            3,
            "Early stopping needs validation images. Set validation_fraction to 0.1, or leave early stopping empty.",
        ),
    ],
)
def test_one_sentence_for_each_mistake(field: str, value: Any, sentence: str) -> None:
    extra = {"momentum": 0} if field == "nesterov" else {}
    assert problems(**{**extra, field: value}) == {field: sentence}


def test_an_unknown_field_far_from_all_names_them() -> None:
    assert problems(zzz=1)["zzz"].startswith("Unknown field. Known fields: dataset, ")


def test_every_mistake_is_told_at_once() -> None:
    assert set(problems(epochs=0, width=0, momentum=2)) == {"epochs", "width", "momentum"}


def test_what_is_missing() -> None:
    with pytest.raises(ConfigError, match="dataset: Required, but not given"):
        parse_config({})


def test_half_a_character_is_told_in_whole_ones() -> None:
    for name, message in problems(dataset="\ud800", **{"\udfff": 1}).items():
        assert (name + message).encode()


def test_a_field_that_does_not_apply_is_null_with_a_warning_if_given() -> None:
    config, warnings = parse_config({**BASE, "optimizer": "adam", "momentum": 0.9})
    assert (config.momentum, config.nesterov, config.peak_at, config.permutation_seed) == (None, None, None, None)
    assert warnings == ["momentum does not apply when optimizer is adam, so it is ignored."]
    assert parse_config({**BASE, "optimizer": "adam"})[1] == []
    assert parse_config({**BASE, "learning_rate": 11})[1] == [
        "A learning rate above 10 nearly always ends in NaN; 0.001 to 0.1 is usual."
    ]


def test_parsing_again_changes_nothing() -> None:
    config, _warnings = parse_config({**BASE, "optimizer": "adam", "permute_pixels": True})
    assert parse_config(config.model_dump()) == (config, [])
    assert RunConfig.model_validate(config.model_dump()) == config


def test_hashes_never_change() -> None:
    plain = parse_config(BASE)[0]
    assert (config_hash(plain), group_hash(plain)) == (PLAIN, PLAIN)
    other = parse_config({**BASE, "seed": 3, "learning_rate": 0.1, "device": "cpu"})[0]
    assert (config_hash(other), group_hash(other)) == OTHER


def test_hashes_name_what_differs_from_the_defaults() -> None:
    config = parse_config({**BASE, "epochs": 2, "device": "cuda:1", "optimizer": "adam"})[0]
    assert canonical(config) == {**BASE, "epochs": 2, "device": "cuda:1", "optimizer": "adam"}
    spelled = parse_config({**BASE, "width": 6, "epochs": 1, "seed": 0, "momentum": 0.5})[0]
    assert config_hash(spelled) == config_hash(parse_config(BASE)[0])
    seeds = {config_hash(parse_config({**BASE, "seed": seed})[0]) for seed in range(3)}
    groups = {group_hash(parse_config({**BASE, "seed": seed})[0]) for seed in range(3)}
    assert (len(seeds), len(groups)) == (3, 1)


def test_widths() -> None:
    assert resolved_width(parse_config(BASE)[0]) == 6
    assert resolved_width(parse_config({**BASE, "width": 12})[0]) == 12


@pytest.mark.parametrize(
    ("fields", "size", "channels", "count", "field"),
    [
        ({"model": "vgg"}, (15, 40), 1, 100, "model"),
        ({"normalization": "cifar10"}, (28, 28), 1, 100, "normalization"),
        ({"model": "vgg", "progressive_size": True}, (28, 28), 3, 100, "progressive_size"),
        ({"model": "vgg", "progressive_size": True}, (32, 40), 3, 100, "progressive_size"),
        ({"train_fraction": 0.001}, (28, 28), 1, 100, "train_fraction"),
    ],
)
def test_rules_between_config_and_data(
    fields: dict[str, Any], size: tuple[int, int], channels: int, count: int, field: str
) -> None:
    config = parse_config({**BASE, **fields})[0]
    with pytest.raises(ConfigError) as caught:
        check_data(config, image_size=size, num_channels=channels, num_train=count)
    assert [problem.field for problem in caught.value.problems] == [field]
    check_data(parse_config(BASE)[0], image_size=(28, 28), num_channels=1, num_train=100)


def test_every_field_explains_itself() -> None:
    for name, field in FIELDS.items():
        extra = field.json_schema_extra
        assert isinstance(extra, dict), name
        assert field.title, name
        assert field.description, name
        assert field.description.endswith("."), name
        assert extra["group"] in GROUPS, name
