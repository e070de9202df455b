"""The nouns: what is written as JSON comes back equal, and equal content has one digest."""

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
    TrainingRun,
    from_json,
    to_json,
)
from pipelines.core.conversation import Conversation, Turn
from pipelines.core.digests import digest_of, short

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
    TrainingRun(
        REF, "run", 60, (CHECKPOINT, dataclasses.replace(CHECKPOINT, step=60)), {"seconds": 1.5}
    ),
    EvalReport(REF, (BASE, Score("b" * 64, "step 30", 0.1, 1.0, 2, 34, error="")), "f" * 64),
    GateDecision(True, "b" * 64, "exact_match", "better"),
    ModelVersion(
        "bot",
        "a" * 64,
        "/store/models/a/adapter",
        "base",
        "f" * 64,
        {"recipe": "1"},
        {"loss": 0.1},
        "2026",
    ),
    AliasMove(
        Alias("bot", "production", "bot@aaa", 3), "rollback", "why", "2026-11-22T00:00:00+00:00"
    ),
    Endpoint("http://127.0.0.1:8000", ("base", "bot@aaa")),
]


@pytest.mark.parametrize("noun", NOUNS, ids=lambda noun: type(noun).__name__)
def test_a_noun_comes_back_from_json_equal_with_everything_nested_in_it(noun: Any) -> None:
    text = json.dumps(to_json(noun))
    again = from_json(type(noun), json.loads(text))
    assert again == noun
    assert digest_of(again) == digest_of(noun)
    assert [type(v) for v in vars(again).values()] == [type(v) for v in vars(noun).values()]


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


def test_keys_of_a_later_version_are_left_out_and_missing_ones_are_an_error() -> None:
    data = to_json(CHECKPOINT)
    assert from_json(Checkpoint, data | {"added_later": 1}) == CHECKPOINT
    del data["step"]
    with pytest.raises(TypeError, match="step"):
        from_json(Checkpoint, data)


def test_a_digest_depends_on_the_content_and_on_nothing_else() -> None:
    value = {"b": [1, 2.5, None, True], "a": {"ü": "\n"}}
    # Written down: artifacts found by a digest must be found by tomorrow's code too.
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


def test_messages_hold_what_a_chat_template_takes() -> None:
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


def test_fill_is_a_share_of_all_positions() -> None:
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
