"""Training rows that ask a held-out or benchmark question are found and refused or dropped."""

from __future__ import annotations

import json

import pytest

from pipelines.core.errors import UserError
from tests.unit.data.datasets import prepare_rows, rows_of, talk

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_leakage_is_an_error_and_can_be_dropped(pocket_base, store, tmp_path):
    heldout = [{"instruction": "say  3", "output": "another answer"}]
    with pytest.raises(
        UserError,
        match=r"1 training rows ask questions that .*first: rows.jsonl:4.*data.leakage=drop",
    ):
        prepare_rows(pocket_base, store, tmp_path, rows_of(range(10)), heldout)
    prepared, texts = prepare_rows(
        pocket_base, store, tmp_path, rows_of(range(10)), heldout, leakage="drop"
    )
    assert (
        prepared.counts["leaked"] == 1
        and len(texts) == 9
        and not any("Say 3<" in text for text in texts)
    )
    _, texts = prepare_rows(
        pocket_base, store, tmp_path, rows_of(range(10)), heldout, leakage="allow"
    )
    assert len(texts) == 10


def test_benchmark_text_is_found_by_question_and_by_runs_of_words(pocket_base, store, tmp_path):
    passage = " ".join(f"word{i}" for i in range(20))
    benchmark = tmp_path / "bench.jsonl"
    benchmark.write_text(
        "\n".join(
            json.dumps(r)
            for r in [{"question": "Say 4", "answer": "x"}, {"question": passage, "answer": "y"}]
        )
    )
    rows = [*rows_of(range(10)), {"instruction": "quote", "output": f"He said: {passage}!"}]
    prepared, _ = prepare_rows(
        pocket_base, store, tmp_path, rows, benchmarks=[str(benchmark)], leakage="drop"
    )
    assert prepared.counts["leaked"] == 2
    with pytest.raises(
        UserError, match="2 training rows ask questions that are held out or in data.benchmarks"
    ):
        prepare_rows(pocket_base, store, tmp_path, rows, benchmarks=[str(benchmark)])


def test_a_short_benchmark_question_is_found_with_any_system_turn_and_in_any_exchange(
    pocket_base, store, tmp_path
):
    benchmark = tmp_path / "bench.jsonl"
    two = talk(
        ("user", "Name a river."), ("assistant", "Elbe"), ("user", "Why?"), ("assistant", "x")
    )
    rows = [{"question": "What is 2 + 2?", "choices": ["3", "4"], "answer": 1}, two]
    benchmark.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked, answer = ("user", "what is  2 + 2?"), ("assistant", "4")
    leaking = [
        talk(("system", "Be brief."), asked, answer),
        talk(
            ("user", "Hi"),
            ("assistant", "Hello"),
            asked,
            answer,
            ("user", "Thanks"),
            ("assistant", "Bye"),
        ),
        talk(("system", "s"), ("user", "name a river."), ("assistant", "Rhine")),
    ]
    innocent = [
        talk(
            ("user", "Tell me a joke."),
            ("assistant", "No."),
            ("user", "Why?"),
            ("assistant", "Because."),
        )
    ]
    section = {"benchmarks": [str(benchmark)], "leakage": "drop"}
    prepared, texts = prepare_rows(
        pocket_base, store, tmp_path, [*leaking, *innocent, *rows_of(range(5))], **section
    )
    assert prepared.counts["leaked"] == 3 and len(texts) == 6


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"foo": "a"}', "unknown format: the row has the keys foo"),
        ("not a row", "not JSON"),
        ("[1]", "a row is an object"),
    ],
)
def test_an_unreadable_benchmark_row_is_refused_with_its_line(
    pocket_base, store, tmp_path, line, reason
):
    (tmp_path / "bench.jsonl").write_text(f'{{"question": "q", "answer": "a"}}\n{line}\n')
    with pytest.raises(UserError, match=rf"data.benchmarks: .*bench.jsonl:2: {reason}"):
        prepare_rows(
            pocket_base,
            store,
            tmp_path,
            rows_of(range(5)),
            benchmarks=[str(tmp_path / "bench.jsonl")],
        )


def test_a_training_row_that_continues_a_held_out_conversation_leaks(pocket_base, store, tmp_path):
    asked, answer = ("user", "Say 3"), ("assistant", "It is 3.")
    rows = [talk(asked, answer, ("user", "And 4?"), ("assistant", "4.")), *rows_of(range(10, 15))]
    with pytest.raises(
        UserError, match=r"1 training rows ask questions that are held out .*first: rows.jsonl:1\)"
    ):
        prepare_rows(pocket_base, store, tmp_path, rows, [talk(asked, answer)])


def test_conversations_with_the_same_opening_are_held_out_together(pocket_base, store, tmp_path):
    """Every depth of a conversation as a row of its own: no split of our own making leaks."""
    rows = []
    for number in range(40):
        turns = [("assistant", "Welcome!"), ("system", "s")][: number % 3]
        for depth in range(3):
            turns = [
                *turns,
                ("user", f"question {depth} of {number}"),
                ("assistant", f"answer {depth}"),
            ]
            rows.append(talk(*turns))
    prepared, texts = prepare_rows(pocket_base, store, tmp_path, rows, heldout_share=0.3)
    assert (
        prepared.counts["train"] + prepared.counts["heldout"] == 120
        and prepared.counts["heldout"] >= 15
    )
    assert all(prepared.counts[split] % 3 == 0 for split in ("train", "heldout"))
    assert len({text.split("question 0 of ")[1].split("<")[0] for text in texts}) * 3 == len(texts)


def test_loss_settings_of_turns_do_not_hide_a_held_out_question(pocket_base, store, tmp_path):
    heldout = [talk(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))]
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "train": False},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d", "weight": 0.5},
    ]
    with pytest.raises(UserError, match="1 training rows ask questions that are held out"):
        prepare_rows(
            pocket_base, store, tmp_path, [{"messages": turns}, *rows_of(range(5))], heldout
        )
