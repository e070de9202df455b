"""The nouns: their JSON form comes back equal, and equal content has one digest."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import Any

import pytest

from pipelines.core import artifacts, conversation
from pipelines.core.artifacts import (
    Alias,
    AliasMove,
    Answer,
    ArtifactRef,
    Checkpoint,
    Endpoint,
    EvalReport,
    GateDecision,
    ModelVersion,
    PreparedDataset,
    Score,
    SplitStats,
    TemplateChoice,
    TrainingRun,
)
from pipelines.core.conversation import Conversation, Turn
from pipelines.core.digests import digest_of, short
from pipelines.core.noun_json import from_json, map_uris, to_json

REF = ArtifactRef("runs/abc", "a" * 64, "b" * 64, "/store/runs/abc/aaa", {"prepared": "c" * 64})
CHECKPOINT = Checkpoint(REF, "run", 30, {"heldout_loss": 0.25})
ANSWER = Answer("id", "question", "reference", "generated", exact=False)
BASE = Score("base", "base", 0.5, 0.0, 2, 34, (ANSWER, dataclasses.replace(ANSWER, exact=True)))
CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
NOUNS = [
    REF,
    Conversation(
        (Turn("user", "ü\n\u2028"), Turn("assistant", "", False, 0.5, (CALL,), "tool")),
        ({"name": "add"},),
        "f:1",
    ),
    PreparedDataset(
        REF, 512, SplitStats(3, 2, 700, 99), SplitStats(0, 0, 0, 0), {"read": 3}, "d" * 64, "e" * 64
    ),
    TemplateChoice("{{ messages }}", "{{ tools }}", {"enable_thinking": False}),
    TrainingRun(
        REF, "run", 60, (CHECKPOINT, dataclasses.replace(CHECKPOINT, step=60)), {"s": 1.5}, 30.5
    ),
    EvalReport(REF, (BASE, Score("b" * 64, "step 30", 0.1, 1.0, 2, 34, error="")), "f" * 64),
    GateDecision(True, "b" * 64, "exact_match", "better"),
    GateDecision(
        False, "b" * 64, "loss", "worse", "bot@aaa", "bot@bbb", 3, "c" * 64, "d" * 64, REF
    ),
    ModelVersion(
        "bot",
        "a" * 64,
        "/store/models/a/adapter",
        "base",
        "f" * 64,
        {"recipe": "1"},
        {"loss": 0.1},
        "2026",
        {"merged": "cat@bbb"},
        "nf4",
        "bf16",
        "t" * 64,
        {"enable_thinking": False},
        "transformers",
        "/store/rows.txt",
        "/store/canonical",
    ),
    AliasMove(
        Alias("bot", "production", "bot@aaa", 3, (("bot@aaa", 0.9), ("bot@bbb", 0.1))),
        "rollback",
        "why",
        "2026-11-22T00:00:00+00:00",
        "someone@host",
        "d" * 64,
        True,
    ),
    Endpoint("http://127.0.0.1:8000", ("base", "bot@aaa")),
]


@pytest.mark.parametrize("noun", NOUNS, ids=lambda noun: type(noun).__name__)
def test_a_noun_comes_back_from_json_equal_with_everything_nested_in_it(noun: Any) -> None:
    text = json.dumps(to_json(noun))
    reread = from_json(type(noun), json.loads(text))
    assert reread == noun
    assert digest_of(reread) == digest_of(noun)
    assert [type(v) for v in vars(reread).values()] == [type(v) for v in vars(noun).values()]


def test_every_persisted_noun_is_in_the_round_trip_above() -> None:
    frozen = {
        name
        for module in (artifacts, conversation)
        for name, value in vars(module).items()
        if dataclasses.is_dataclass(value)
        and isinstance(value, type)
        and value.__module__ == module.__name__
    }
    nested = {"Turn", "SplitStats", "Checkpoint", "Answer", "Score", "Alias"}
    assert frozen == {type(noun).__name__ for noun in NOUNS} | nested
    for noun in NOUNS:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(noun, dataclasses.fields(noun)[0].name, "other")


def test_unknown_keys_are_ignored_and_missing_fields_without_a_default_are_an_error() -> None:
    data = to_json(CHECKPOINT)
    assert from_json(Checkpoint, data | {"added_later": 1}) == CHECKPOINT
    del data["step"]
    with pytest.raises(TypeError, match="step"):
        from_json(Checkpoint, data)


@pytest.mark.parametrize("noun", NOUNS, ids=lambda noun: type(noun).__name__)
def test_missing_fields_with_a_default_get_it_and_each_other_one_is_required(noun: Any) -> None:
    data = to_json(noun)
    for field in dataclasses.fields(noun):
        rest = {name: value for name, value in data.items() if name != field.name}
        required = field.default is field.default_factory is dataclasses.MISSING
        if required:
            with pytest.raises(TypeError, match=field.name):
                from_json(type(noun), rest)
        else:
            default = getattr(from_json(type(noun), rest), field.name)
            assert default == (
                field.default_factory() if callable(field.default_factory) else field.default
            )


def test_an_alias_without_targets_sends_everything_to_its_version() -> None:
    alias = Alias("bot", "production", "bot@aaa", 3)
    assert alias.targets == (("bot@aaa", 1.0),)
    data = to_json(alias)
    del data["targets"]
    assert from_json(Alias, data) == alias


def test_the_uris_of_nested_references_are_changed_and_nothing_else() -> None:
    run = next(noun for noun in NOUNS if isinstance(noun, TrainingRun))
    changed = map_uris(run, str.upper)
    assert changed.ref.uri == REF.uri.upper() != REF.uri
    assert {checkpoint.ref.uri for checkpoint in changed.checkpoints} == {REF.uri.upper()}
    assert map_uris(changed, str.lower) == run


def test_a_digest_depends_on_the_content_alone() -> None:
    value = {"b": [1, 2.5, None, True], "a": {"ü": "\n"}}
    # A fixed value: later versions must compute the same digest to find the artifact.
    assert digest_of(value) == "db415f235ebd8b941b572b7aed7994042b58f8ed3d916d445ae54b690a41003c"
    assert digest_of({"a": {"ü": "\n"}, "b": (1, 2.5, None, True)}) == digest_of(value)
    assert digest_of({**value, "b": [1, 2.5, None, 1.5]}) != digest_of(value)
    assert (
        short(digest_of(value))
        == digest_of(value)[:12]
        == dataclasses.replace(REF, key=digest_of(value)).name
    )
    with pytest.raises(TypeError, match="set has no JSON form"):
        digest_of({"a": {1, 2}})


def test_messages_are_the_input_of_a_chat_template() -> None:
    turns = (
        Turn("user", "q"),
        Turn("assistant", "", tool_calls=(CALL,)),
        Turn("tool", "3", name="add"),
    )
    assert Conversation(turns).messages() == [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "3", "name": "add"},
    ]


def test_fill_is_the_share_of_positions_with_a_token() -> None:
    assert SplitStats(3, 2, 768, 10).fill(512) == 0.75
    assert SplitStats(0, 0, 0, 0).fill(512) == 0.0


def test_nouns_recipes_and_storage_load_nothing_heavy() -> None:
    heavy = "{'torch', 'ray', 'transformers', 'peft', 'deepspeed', 'numpy', 'fsspec'}"
    code = "import sys, pipelines.core.artifacts, pipelines.storage, pipelines.config.load; "
    done = subprocess.run(
        [sys.executable, "-c", code + f"print(*sorted({heavy} & set(sys.modules)))"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.strip() == ""
