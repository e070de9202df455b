from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.chat import ChatRenderer
from pipelines.config.recipe import parse_recipe
from pipelines.core.conversation import Conversation, Turn
from pipelines.core.errors import UserError
from pipelines.core.progress import SILENT
from pipelines.data.convert.dedup import (
    content_id,
    nearly_repeated,
    prompt_keys,
    repeated,
    signature,
)
from pipelines.data.convert.quality_filters import Rules
from pipelines.data.stage import prepare

pytestmark = pytest.mark.usefixtures("ray_cluster")


def rows_of(numbers, answer="It is {}."):
    return [{"instruction": f"Say {i}", "input": "", "output": answer.format(i)} for i in numbers]


def talk_of(number, num_exchanges, words=10):
    messages = [{"role": "system", "content": f"talk {number}"}]
    for i in range(num_exchanges):
        messages += [{"role": "user", "content": f"question {i} of {number}"},
                     {"role": "assistant", "content": f"answer {i} " + "word " * words}]  # fmt: skip
    return {"messages": messages}


def run(base, store, tmp_path, rows, heldout=(), tokenize=None, **data):
    """Prepare rows and return the artifact's noun and the decoded texts of its training samples."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = [{"path": str(tmp_path / "rows.jsonl"), **data.pop("source", {})}]
    if heldout:
        (tmp_path / "heldout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in heldout))
        sources.append({"path": str(tmp_path / "heldout.jsonl"), "split": "heldout"})
    section = {"sources": sources, "row_tokens": 256, "heldout_share": 0, **data}
    recipe = parse_recipe({"name": "t", "model": {"base": base}, "data": section})
    prepared = prepare(recipe, store, SILENT, tokenize)
    renderer, texts = ChatRenderer.load(base), []
    for path in sorted(store.local_dir(prepared.ref).glob("train-*.parquet")):
        for row in pq.read_table(path).to_pylist():
            at = 0
            for length in row["sample_lengths"]:
                texts.append(
                    renderer.decode(row["input_ids"][at : at + length], skip_control=False)
                )
                at += length
    return prepared, texts


def test_exact_duplicates_are_dropped_counted_and_listed(pocket_base, store, tmp_path):
    rows = [*rows_of(range(20)), *rows_of(range(5))]
    prepared, texts = run(pocket_base, store, tmp_path, rows)
    assert prepared.counts["duplicates"] == 5 and len(texts) == len(set(texts)) == 20
    listed = [json.loads(line) for line in (store.local_dir(prepared.ref) / "rejects.jsonl").open()]
    assert [line["origin"] for line in listed] == [f"rows.jsonl:{n}" for n in range(21, 26)]
    _, texts = run(pocket_base, store, tmp_path, rows, duplicates="keep")
    assert len(texts) == 25


def test_near_duplicates_are_found_above_the_threshold(pocket_base, store, tmp_path):
    long = "the quick brown fox jumps over the lazy dog and then it sleeps for a very long time under the old tree {}"
    words = np.random.default_rng(0).integers(0, 10**9, (8, 12))
    different = [
        {"instruction": f"q{i}", "output": " ".join(map(str, w))} for i, w in enumerate(words)
    ]
    rows = [*rows_of([1], long), *different, *rows_of([2], long)]
    prepared, texts = run(pocket_base, store, tmp_path, rows, near_duplicates=0.8)
    assert prepared.counts["near_duplicates"] == 1 and len(texts) == 9
    prepared, _ = run(pocket_base, store, tmp_path, rows, near_duplicates=1.0)
    assert prepared.counts["near_duplicates"] == 0


def test_minhash_agrees_with_the_jaccard_similarity():
    one = "a text of some length about nothing at all, with a number of words in it"
    pairs = np.array(
        [
            np.frombuffer(signature(t), np.uint32)
            for t in (one, one.upper(), one + " and a little more")
        ]
    )
    assert list(nearly_repeated(pairs, 0.99)) == [False, True, False]
    assert list(nearly_repeated(pairs, 0.5)) == [False, True, True]
    assert list(repeated(np.array([b"a", b"b", b"a"], "S16"))) == [False, False, True]


def test_leakage_is_an_error_and_can_be_dropped(pocket_base, store, tmp_path):
    heldout = [{"instruction": "say  3", "output": "another answer"}]
    with pytest.raises(
        UserError,
        match=r"1 training rows ask what is held out .*first: rows.jsonl:4.*data.leakage=drop",
    ):
        run(pocket_base, store, tmp_path, rows_of(range(10)), heldout)
    prepared, texts = run(pocket_base, store, tmp_path, rows_of(range(10)), heldout, leakage="drop")
    assert (
        prepared.counts["leaked"] == 1
        and len(texts) == 9
        and not any("Say 3<" in text for text in texts)
    )
    _, texts = run(pocket_base, store, tmp_path, rows_of(range(10)), heldout, leakage="allow")
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
    prepared, _ = run(
        pocket_base, store, tmp_path, rows, benchmarks=[str(benchmark)], leakage="drop"
    )
    assert prepared.counts["leaked"] == 2
    with pytest.raises(
        UserError, match="2 training rows ask what is held out or in data.benchmarks"
    ):
        run(pocket_base, store, tmp_path, rows, benchmarks=[str(benchmark)])


def talk(*turns):
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


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
    prepared, texts = run(
        pocket_base, store, tmp_path, [*leaking, *innocent, *rows_of(range(5))], **section
    )
    assert prepared.counts["leaked"] == 3 and len(texts) == 6


@pytest.mark.parametrize(
    ("line", "reason"),
    [('{"text": "a"}', "unknown format: the row has the keys text"), ("not a row", "not JSON"), ("[1]", "a row is an object")],
)  # fmt: skip
def test_a_benchmark_row_that_guards_nothing_is_an_error(
    pocket_base, store, tmp_path, line, reason
):
    (tmp_path / "bench.jsonl").write_text(f'{{"question": "q", "answer": "a"}}\n{line}\n')
    with pytest.raises(UserError, match=rf"data.benchmarks: .*bench.jsonl:2: {reason}"):
        run(
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
        UserError, match=r"1 training rows ask what is held out .*first: rows.jsonl:1\)"
    ):
        run(pocket_base, store, tmp_path, rows, [talk(asked, answer)])


def test_conversations_that_open_alike_are_held_out_together(pocket_base, store, tmp_path):
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
    prepared, texts = run(pocket_base, store, tmp_path, rows, heldout_share=0.3)
    assert (
        prepared.counts["train"] + prepared.counts["heldout"] == 120
        and prepared.counts["heldout"] >= 15
    )
    assert all(prepared.counts[split] % 3 == 0 for split in ("train", "heldout"))
    assert len({text.split("question 0 of ")[1].split("<")[0] for text in texts}) * 3 == len(texts)


def test_how_a_question_is_trained_on_does_not_hide_it(pocket_base, store, tmp_path):
    heldout = [talk(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))]
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "train": False},
             {"role": "user", "content": "c"}, {"role": "assistant", "content": "d", "weight": 0.5}]  # fmt: skip
    with pytest.raises(UserError, match="1 training rows ask what is held out"):
        run(pocket_base, store, tmp_path, [{"messages": turns}, *rows_of(range(5))], heldout)


def test_what_a_turn_is_called_is_content():
    plain, named = (
        Conversation((Turn("user", "a", name=name), Turn("assistant", "b")))
        for name in (None, "ada")
    )
    assert content_id(plain) != content_id(named) and prompt_keys(plain) == prompt_keys(named)


def reference_near(signatures, threshold):
    """One sample after another against all that were kept."""
    mask = np.zeros(len(signatures), bool)
    for later in range(len(signatures)):
        mask[later] = any(
            (signatures[later] == signatures[e]).mean() >= threshold
            for e in range(later)
            if not mask[e]
        )
    return mask


def test_near_duplicates_are_those_of_the_plain_comparison():
    rng = np.random.default_rng(0)
    heads = rng.integers(0, 2**32, (12, 64), np.uint32)
    signatures = heads[rng.integers(0, 12, 200)]
    changed = rng.random(signatures.shape) < rng.choice([0.02, 0.1, 0.3], (200, 1))
    signatures = np.where(changed, rng.integers(0, 2**32, signatures.shape, np.uint32), signatures)
    for threshold in (0.95, 0.8):
        found = nearly_repeated(signatures, threshold)
        assert list(found) == list(reference_near(signatures, threshold)) and 0 < found.sum() < 188
    among = np.arange(0, 200, 3)
    assert list(nearly_repeated(signatures, 0.8, among)[among]) == list(
        reference_near(signatures[among], 0.8)
    )


def test_rules_keep_rows_out_and_are_counted(pocket_base, store, tmp_path):
    rows = [
        *rows_of(range(10)),
        {"instruction": "a", "output": "x"},
        {"instruction": "b", "output": "la la la la la la"},
    ]
    keep = ["answer_chars >= 2", "unique_word_share > 0.2 and not repeats_prompt"]
    prepared, texts = run(pocket_base, store, tmp_path, rows, keep=keep)
    assert prepared.counts["filtered"] == 2 and len(texts) == 10


@pytest.mark.parametrize(
    "rule",
    ["answer_chars >=", "__import__('os')", "answer_char > 1", "'a' * 9", "answer_chars ** 9 > 1"],
)
def test_a_rule_that_is_none_is_one_clear_line(rule):
    with pytest.raises(UserError, match="data.keep: .*answer_chars"):
        Rules([rule])


def test_a_rule_that_divides_by_nothing_is_not_fulfilled():
    assert Rules(["1 / prompt_chars > 0"]).broken_by(Conversation((Turn("assistant", "a"),)))


def test_a_weight_thins_out_the_answers_to_one_question(pocket_base, store, tmp_path, serially):
    rows = [{"instruction": "Say a number", "output": f"It is {i}."} for i in range(100)]
    prepared, _ = run(pocket_base, store, tmp_path, rows, source={"weight": 0.5}, tokenize=serially)
    assert 30 <= prepared.counts["train"] <= 70
    assert prepared.counts["skipped"] == 100 - prepared.counts["train"]


@pytest.mark.parametrize(
    ("weight", "low", "high"), [(0.5, 30, 70), (1.5, 130, 170), (2, 200, 200), (0, 0, 0)]
)
def test_weights_repeat_and_thin_out_by_content(pocket_base, store, tmp_path, weight, low, high):
    rows = rows_of(range(100))
    if not weight:
        with pytest.raises(UserError, match="no row left to train on"):
            run(pocket_base, store, tmp_path, rows, source={"weight": weight})
        return
    prepared, texts = run(pocket_base, store, tmp_path, rows, source={"weight": weight})
    assert low <= len(texts) <= high and prepared.train.num_samples == len(texts)
    assert prepared.counts["skipped"] == 100 - prepared.counts["train"]


def test_long_conversations_are_dropped_truncated_or_split_by_whole_turns(
    pocket_base, store, tmp_path
):
    rows = [talk_of(0, 12), talk_of(1, 1), talk_of(2, 1, words=400)]
    prepared, texts = run(pocket_base, store, tmp_path, rows)
    assert prepared.counts["too_long"] == 2 and len(texts) == 1
    lost = [
        json.loads(line)
        for line in (store.local_dir(prepared.ref) / "rejects.jsonl").read_text().splitlines()
    ]
    assert [line["fate"] for line in lost] == ["too_long"] * 2 and all(
        "talk " in line["row"] for line in lost
    )
    prepared, texts = run(pocket_base, store, tmp_path, rows, too_long="truncate")
    assert (prepared.counts["too_long"], prepared.counts["shortened"], len(texts)) == (1, 1, 2)
    (cut,) = (text for text in texts if "talk 0" in text)
    assert (
        cut.startswith("<|system|>talk 0<|user|>question ")
        and "answer 11 " in cut
        and "question 0 " not in cut
    )
    prepared, texts = run(pocket_base, store, tmp_path, rows, too_long="split")
    pieces = [text for text in texts if "talk 0" in text]
    assert prepared.counts["pieces"] == len(pieces) > 1
    assert sorted(
        int(p.split(" ")[0]) for text in pieces for p in text.split("<|assistant|>answer ")[1:]
    ) == list(range(12))


def test_only_the_last_answer_is_trained_on_demand(pocket_base, store, tmp_path):
    prepared, texts = run(pocket_base, store, tmp_path, [talk_of(i, 2, words=1) for i in range(5)])
    last, same = run(
        pocket_base, store, tmp_path, [talk_of(i, 2, words=1) for i in range(5)], train_on="last"
    )
    assert (
        sorted(texts) == sorted(same)
        and last.train.num_loss_tokens * 2 == prepared.train.num_loss_tokens
    )
