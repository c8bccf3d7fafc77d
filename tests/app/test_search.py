"""The search language: what it finds, what it refuses and where it points, and that it never reaches SQL as text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine
from sqlmodel import col, select

from app.store.database import reading, writing
from app.store.fields import fields, unknown_field
from app.store.search import SearchError, condition
from app.store.tables import Run
from trainer.config import FIELDS, config_hash, group_hash, parse_config

Find = Callable[[str], list[str]]

RUNS: dict[str, dict[str, Any]] = {
    "a": {"model": "fc", "tags": ["final", "part 1"], "test_accuracy": 0.978, "momentum": 0.9, "notes": "Don't drop."},
    "b": {
        "model": "vgg",
        "tags": ["final"],
        "test_accuracy": 0.905,
        "optimizer": "adam",
        "created_at": "2026-03-02T09:00:00.000Z",
    },
    "c": {"model": "vgg", "test_accuracy": None, "status": "queued", "seed": 3, "permute_pixels": True, "sweep": "s1"},
    "d": {
        "model": "cnn",
        "tags": ["50 %"],
        "test_accuracy": 0.97,
        "name": "wide (64) and_x",
        "validation_fraction": 0.1,
        "early_stopping_patience": 5,
        "status": "failed",
        "created_at": "2026-04-01T00:00:00.000Z",
    },
}


def row(run_id: str, **values: Any) -> Run:
    columns = {name: values.pop(name) for name in list(values) if name in Run.model_fields and name not in FIELDS}
    config, _warnings = parse_config({"dataset": "mnist", **values})
    at = "2026-03-01T10:00:00.000Z"
    return Run(
        **{
            "id": run_id,
            "name": f"run {run_id}",
            "config": config.model_dump(),
            "dataset": "mnist",
            "model": config.model,
            "config_hash": config_hash(config),
            "group": group_hash(config),
            "seed": config.seed,
            "created_at": at,
            "status": "finished",
            **columns,
        }
    )


@pytest.fixture
def find(engine: Engine) -> Find:
    with writing(engine) as session:
        session.add_all([row(run_id, **values) for run_id, values in RUNS.items()])
        session.commit()

    def found(text: str) -> list[str]:
        wanted = condition(text)
        with reading(engine) as session:
            query = select(Run.id) if wanted is None else select(Run.id).where(wanted)
            return list(session.exec(query.order_by(col(Run.id))).all())

    return found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "abcd"),
        ("   ", "abcd"),
        # words
        ("vgg", "bc"),
        ("VGG", "bc"),
        ("'run a'", "a"),
        ("final", "ab"),
        ("drop", "a"),
        ("50 %", "d"),
        ('"wide (64)"', "d"),
        ("don't", "a"),
        ("'part 1'", "a"),
        ("10:30", ""),
        ("and_x", "d"),
        ('"and"', "d"),
        ("d_x", "d"),
        # equality
        ("model=vgg", "bc"),
        ("model = vgg", "bc"),
        ("model==vgg", "bc"),
        ("MODEL=vgg", "bc"),
        ("model:vgg", "bc"),
        ("model!=vgg", "ad"),
        ("tag:final", "ab"),
        ("tag=final", "ab"),
        ("tag != final", "cd"),
        ("tag:'part 1'", "a"),
        ("tag ~ PART", "a"),
        ("name='wide (64) and_x'", "d"),
        ("name ~ wide", "d"),
        ('notes="Don\'t drop."', "a"),
        ("seed=3", "c"),
        ("status=queued", "c"),
        ("sweep=s1", "c"),
        ("sweep != s1", "abd"),
        ("learning_rate = 1e-2", "abcd"),
        ("permute_pixels=true", "c"),
        ("permute_pixels=no", "abd"),
        ("id=a", "a"),
        ("notes=''", "bcd"),
        ("dataset~nis", "abcd"),
        # numbers
        ("test_accuracy>0.97", "a"),
        ("test_accuracy >= 97%", "ad"),
        ("test_accuracy >= 97 %", "ad"),
        ("test_accuracy=97.8%", "a"),
        ("test_accuracy<0.95", "b"),
        ("test_accuracy <= 97 % model=cnn", "d"),
        ("validation_fraction=10%", "d"),
        ("test_accuracy != 0.978", "bcd"),
        ("seed>-1", "abcd"),
        # missing
        ("test_accuracy = null", "c"),
        ("test_accuracy != null", "abd"),
        ("early_stopping_patience = null", "abc"),
        ("momentum=null", "b"),
        ("momentum != 0.9", "bcd"),
        ("tag=null", "c"),
        ("name='null'", ""),
        ("sweep=NULL", "abd"),
        # times
        ("created_at >= 2026-03-02", "bd"),
        ("created_at > 2026-03-02", "d"),
        ("created_at <= 2026-03-02", "abc"),
        ("created_at < 2026-03-02", "ac"),
        ("created_at = 2026-03", "abc"),
        ("created_at != 2026-03", "d"),
        ("created_at = 2026-03-02T09", "b"),
        ("finished_at = null", "abcd"),
        ("started_at != 2026", "abcd"),
        # together
        ("model=vgg and test_accuracy>0.9 and tag:final", "b"),
        ("model=vgg tag:final", "b"),
        ("model=fc or model=cnn", "ad"),
        ("model=fc OR model=vgg AND tag:final", "ab"),
        ("(model=fc or model=vgg) and tag:final", "ab"),
        ("not model=vgg", "ad"),
        ("not not model=vgg", "bc"),
        ("not(model=vgg or model=fc)", "d"),
        ("not vgg", "ad"),
        ("not test_accuracy > 97%", "bcd"),
        ("not (test_accuracy < 0.95)", "acd"),
        ("not name ~ run", "d"),
        ("not sweep ~ s", "abd"),
        ("vgg or drop", "abc"),
        ("config.precision=auto", "abcd"),
        ("precision=null", "abcd"),
        ("not created_at < 2026", "abcd"),
    ],
)
def test_what_an_expression_finds(find: Find, text: str, found: str) -> None:
    assert find(text) == list(found)


@pytest.mark.parametrize(
    ("text", "position", "words"),
    [
        ("tets_accuracy > 0.9", 0, "There is no field tets_accuracy. Did you mean test_accuracy?"),
        ("model=vgg and lr=0.1", 14, "Did you mean learning_rate?"),
        ("tga:final", 0, "Did you mean tag?"),
        ("shoe=1", 0, "Use quotes to search for it as text."),
        ("model=vg", 6, "vg is not a value of model. Did you mean vgg?"),
        ("status=shoe", 7, "status is one of running, queued, finished, failed, cancelled, damaged. You typed shoe."),
        ("test_accuracy > 97", 16, "test_accuracy is a fraction from 0 to 1. Did you mean 97%?"),
        ("test_accuracy > high", 16, "test_accuracy is a number, as in test_accuracy >= 0.9. You typed high."),
        ("seed ~ 3", 7, "seed is a number"),
        ("seed = nan", 7, "You typed nan."),
        ("seed > null", 7, "null can only be compared with = and !=."),
        ("name > b", 7, "name is not a number"),
        ("permute_pixels=1", 15, "permute_pixels is true or false"),
        ("created_at > yesterday", 13, "created_at is a time in UTC, as in created_at >= 2026-03-01."),
        ("model=", 5, "A value is missing after =."),
        ("a (model=)", 8, "A value is missing after =."),
        ("model=vgg and", 13, "A search term is missing here."),
        ("model=vgg or or x", 13, "A condition is missing before or."),
        ("and x", 0, "A condition is missing before and. Use quotes to search for it as a word."),
        ("not", 3, "A search term is missing here."),
        ("= vgg", 0, "A field is missing before =, as in test_accuracy > 97%."),
        ("()", 1, "A search term is missing here."),
        ("(model=vgg", 0, "This bracket is never closed."),
        ("x (a or (b)", 2, "This bracket is never closed."),
        ("model=vgg)", 9, "This bracket was never opened."),
        ('name="a', 5, "This quote is never closed."),
        ("'a", 0, "This quote is never closed."),
        ("(" * 21 + "a" + ")" * 21, 20, "Brackets and nots can be nested at most 20 deep."),
        ("not " * 21 + "a", 80, "Brackets and nots can be nested at most 20 deep."),
        ("a " * 41, 80, "A search can have at most 40 conditions."),
        ("a" * 501, 500, "A search can have at most 500 characters."),
    ],
)
def test_what_is_wrong_and_where(text: str, position: int, words: str) -> None:
    with pytest.raises(SearchError) as caught:
        condition(text)
    assert caught.value.position == position
    assert words in caught.value.problem
    assert str(caught.value) == f"Character {position + 1}: {caught.value.problem}"


@pytest.mark.parametrize(
    "text", ["'; DROP TABLE run; --", '" OR 1 or "', "name=\"x' OR '1'='1\"", "a\0b", "name='%'", "_", "\\"]
)
def test_what_is_typed_is_bound(text: str) -> None:
    try:
        found = condition(text)
    except SearchError:
        return
    assert found is not None
    assert "DROP" not in str(found)
    assert "1'='1" not in str(found)


def test_signs_of_sql_are_only_characters(find: Find) -> None:
    assert find("%") == ["d"]
    assert find("_") == ["d"]
    assert find("\\") == find("name~'%'") == find("name=\"x' OR '1'='1\"") == []


_PIECES = st.sampled_from(
    [
        "and",
        "or",
        "not",
        "(",
        ")",
        "=",
        "!=",
        "<",
        "~",
        ":",
        '"',
        "'",
        "%",
        "model",
        "seed",
        "test_accuracy",
        "tag",
        "created_at",
        "vgg",
        "0.9",
        "97%",
        "2026-03",
        "null",
        "true",
        "x",
        "\\",
        "é",
        "1e999",
    ]
)


@given(st.lists(_PIECES, max_size=14), st.sampled_from([" ", ""]))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_anything_is_either_a_condition_that_has_an_opposite_or_an_error_inside_the_text(
    find: Find, pieces: list[str], between: str
) -> None:
    text = between.join(pieces)
    problem = None
    try:
        found = find(text)
    except SearchError as error:
        problem = error
    if problem:
        assert 0 <= problem.position <= len(text)
    elif text.strip():
        assert sorted(found + find(f"not ({text})")) == list(RUNS)


def test_the_fields_are_those_of_the_configuration_and_of_the_index() -> None:
    known = fields()
    assert {name.removeprefix("config.") for name, field in known.items() if field.part == "config"} == set(FIELDS)
    run = row("a", **RUNS["a"])
    assert known["momentum"].of(run) == 0.9
    assert known["seed"].of(run) == 0
    assert known["tag"].of(run) == "final, part 1"
    assert known["test_accuracy"].of(run) == 0.978
    assert known["device"].of(run) is None
    assert known["config.device"].of(run) == "auto"
    assert all(field.title for field in known.values())
    assert unknown_field("bs").endswith("Did you mean batch_size?")
