"""Refused recipes: every problem at once, with its key, its line and what to write instead."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.config.errors import RecipeError
from pipelines.config.load import load_recipe
from pipelines.core.errors import UserError

Refusal = Callable[..., str]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lora.rr=8", "lora.rr: unknown key; did you mean lora.r?"),
        ("lora.rank=8", "lora.rank: unknown key; did you mean lora.r?"),
        ("train.epoch=1", "train.epoch: unknown key; did you mean train.epochs?"),
        ("trian.epochs=1", "trian: unknown key; did you mean train?"),
        ("lr=1", "lr: unknown key; did you mean train.lr?"),
        ("train.port=1", "train.port: unknown key; did you mean serve.port?"),
        (
            "data.sources=[{path: a, formt: alpaca}]",
            "data.sources.0.formt: unknown key; did you mean data.sources.0.format?",
        ),
        ("eval.qqqqqqq=1", "eval.qqqqqqq: unknown key; valid here: max_samples, max_new_tokens, "),
        ("qqqqqqq.a=1", "qqqqqqq: unknown key; valid here: name, model, lora, data, "),
    ],
)
def test_an_unknown_key_comes_with_the_nearest_valid_one(
    path: Path, refusal: Refusal, override: str, message: str
) -> None:
    assert refusal(path, override).startswith(message)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "lora.r=many",
            (
                "lora.r: Input should be a valid integer, unable to parse string as an integer "
                "(given: 'many')"
            ),
        ),
        ("lora.r=0", "lora.r: Input should be greater than or equal to 1 (given: 0)"),
        ("train.lr=.inf", "train.lr: Input should be a finite number (given: inf)"),
        ("lora=5", "lora: Expected a section of keys (given: 5)"),
        (
            "lora.targets=3",
            (
                "lora.targets: Input should be 'qv', 'attention' or 'all-linear' or "
                "Input should be a valid list"
            ),
        ),
        ("data.sources=[]", "data.sources: List should have at least 1 item"),
        (
            "data.sources=[{path: a, format: alpca}]",
            "data.sources.0.format: Input should be 'auto', 'alpaca'",
        ),
        (
            "train.gradient_checkpointing=on",
            (
                "train.gradient_checkpointing: Input should be 'auto', 'off', 'selective' or "
                "'full' (given: 'on')"
            ),
        ),
        (
            "model.dtype=off",
            "model.dtype: Input should be 'auto', 'fp32', 'bf16' or 'fp16' (given: False)",
        ),
        ("name=a b", "name: String should match pattern"),
        ("train.zero=7", "train.zero: Input should be "),
    ],
)
def test_a_wrong_value_is_refused_with_its_key_and_the_given_value(
    path: Path, refusal: Refusal, override: str, message: str
) -> None:
    assert refusal(path, override).startswith(message)


def test_all_problems_are_reported_at_once(path: Path, refusal: Refusal) -> None:
    message = refusal(path, "lora.rr=8", "train.lr=-1")
    assert "lora.rr: unknown key" in message
    assert "; train.lr: Input should be greater than 0 (given: -1)" in message
    path.write_text("name: tiny\n")
    assert refusal(path) == "model: Field required; data: Field required"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lora.r", "-s lora.r: expected section.key=value, for example -s lora.r=8"),
        ("=8", "-s =8: expected section.key=value"),
        ("lora.r=[1", "-s lora.r=[1: the value is not valid YAML"),
        ("lora.r={1: 2: 3}", "the value is not valid YAML"),
    ],
)
def test_an_override_that_is_no_key_with_a_value_is_refused(
    path: Path, override: str, message: str
) -> None:
    with pytest.raises(UserError) as error:
        load_recipe(path, [override])
    assert message in str(error.value)


def test_an_override_below_a_value_is_refused(path: Path) -> None:
    with pytest.raises(UserError, match="-s lora.r.x=2: 'r' is not a section"):
        load_recipe(path, ["lora.r=1", "lora.r.x=2"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a recipe is a mapping of sections, and this file has nothing"),
        ("- a\n- b\n", "this file has a list"),
        ("name: [1\n", "not valid YAML: "),
        (
            "name: tiny\nlora: {r: 1}\nlora: {r: 2}\n",
            "the key 'lora' is given twice (lines 2 and 3)",
        ),
        ("name: tiny\nlora: {r: 1, r: 2}\n", "the key 'r' is given twice (line 2)"),
        (
            "!!python/object/apply:os.system ['true']\n",
            "not valid YAML: could not determine a constructor",
        ),
        ("\tname: tiny\n", "not valid YAML: "),
    ],
)
def test_a_file_without_a_recipe_is_refused_with_the_line(
    path: Path, refusal: Refusal, text: str, message: str
) -> None:
    path.write_text(text)
    answer = refusal(path)
    assert message in answer
    assert "YAML" not in message or "line " in answer


def test_a_file_that_cannot_be_read_is_refused_with_the_nearest_file(
    path: Path, refusal: Refusal
) -> None:
    assert refusal(path.with_name("tini.yaml")) == (
        f"cannot read the recipe (No such file or directory); did you mean {path}?"
    )
    assert refusal(path.parent) == "cannot read the recipe (Is a directory)"
    path.write_bytes(b"\xff\xfe\x00name")
    assert "not valid YAML" in refusal(path)


# -- lines -----------------------------------------------------------------------------------------


def test_a_problem_comes_with_the_line_of_its_key(path: Path, refusal: Refusal) -> None:
    path.write_text(
        "name: tiny\nmodel:\n  base: org/base\ndata:\n  sources:\n    - a.jsonl\n"
        "    - path: b.jsonl\n      formt: alpaca\ntrain:\n  lr: -1\n  epoch: 2\ntrian: {}\n"
    )
    assert refusal(path) == (
        "data.sources.1.formt (line 8): unknown key; did you mean data.sources.1.format?; "
        "train.lr (line 10): Input should be greater than 0 (given: -1); "
        "train.epoch (line 11): unknown key; did you mean train.epochs?; "
        "trian (line 12): unknown key; did you mean train?"
    )


def test_a_missing_key_comes_with_the_line_of_its_section(path: Path, refusal: Refusal) -> None:
    path.write_text("name: tiny\nmodel: {base: org/base}\ndata:\n  seed: 1\n")
    assert refusal(path) == "data.sources (line 3): Field required"


def test_keys_that_contradict_each_other_come_with_a_line(path: Path, refusal: Refusal) -> None:
    path.write_text(
        "name: tiny\nmodel:\n  base: org/base\n  quantization: nf4\ndata: {sources: [a]}\n"
        "train:\n  zero: 3\n  global_batch: 3\n  micro_batch: 2\n"
    )
    first, second = refusal(path).split("; ")
    assert first.startswith("line 7: train.zero=3 splits")
    assert second.startswith("line 8: train.global_batch=3 is not a multiple")


def test_a_value_from_the_command_line_has_no_line_of_the_file(
    path: Path, refusal: Refusal
) -> None:
    path.write_text(path.read_text() + "lora:\n  rr: 1\n  r: 4\n")
    assert refusal(path, "lora.r=0") == (
        "lora.rr (line 6): unknown key; did you mean lora.r?; "
        "lora.r: Input should be greater than or equal to 1 (given: 0)"
    )


def test_every_key_that_is_given_twice_is_reported(path: Path, refusal: Refusal) -> None:
    path.write_text("name: a\nlora:\n  r: 1\n  alpha: 1\n  r: 2\nname: b\nname: c\n")
    assert refusal(path) == (
        "the key 'r' is given twice (lines 3 and 5); "
        "the key 'name' is given 3 times (lines 1, 6 and 7)"
    )


def test_a_document_that_nests_aliases_is_read_in_no_time(path: Path, refusal: Refusal) -> None:
    levels = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    path.write_text("a0: &a0 [x]\n" + levels)
    started = time.monotonic()
    assert "a0 (line 1): unknown key" in refusal(path)
    assert time.monotonic() - started < 20


def test_a_recipes_error_has_its_problems_one_by_one_and_can_be_pickled(path: Path) -> None:
    path.write_text(path.read_text() + "trian: {}\nlora:\n  rr: 1\n")
    with pytest.raises(RecipeError) as error:
        load_recipe(path)
    places = [
        (problem.key, problem.position and (problem.position.line, problem.position.column))
        for problem in error.value.problems
    ]
    assert places == [("trian", (5, 1)), ("lora.rr", (7, 3))]
    copy = pickle.loads(pickle.dumps(error.value))
    assert str(copy) == str(error.value) and copy.problems == error.value.problems
