"""The pocket model's folder: reproducible data, honest splits, an exact chat template, a small
size.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path

import pytest

POCKET = Path(__file__).parents[3] / "assets" / "pocket"
sys.path.insert(0, str(POCKET))

corpus, grammar, tasks = (importlib.import_module(name) for name in ("corpus", "grammar", "tasks"))

FILES = {"person": "person_{}.json", "pirate": "pirate_{}.jsonl", "order": "order_{}.jsonl"}
MEBIBYTE = 2**20
CONVERSATION = [
    {"role": "system", "content": "You write lists."},
    {"role": "user", "content": "Make a shopping list.\n\nPlease send two pears and one hat."},
    {"role": "assistant", "content": "- 2 pears\n- 1 hat"},
    {"role": "tool", "content": "{}"},
    {"role": "user", "content": "Thank you."},
    {"role": "assistant", "content": " Aye!\n"},
]


@pytest.fixture(scope="module")
def tokenizer():
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(POCKET / "model")


def test_generator_reproduces_the_committed_files() -> None:
    rendered = tasks.render_files()
    assert sorted(path.name for path in (POCKET / "tasks").iterdir()) == sorted(rendered)
    for name, text in rendered.items():
        assert (POCKET / "tasks" / name).read_bytes() == text.encode(), (
            f"{name}: run python assets/pocket/tasks.py"
        )


def test_corpus_is_deterministic_and_shards_differ() -> None:
    assert corpus.documents(0, shard=3, count=50) == corpus.documents(0, shard=3, count=50)
    assert corpus.documents(0, shard=3, count=50) != corpus.documents(0, shard=4, count=50)
    assert corpus.documents(0, shard=3, count=50) != corpus.documents(1, shard=3, count=50)


def test_corpus_has_no_chat_format() -> None:
    assert not [
        document for document in corpus.documents(0, shard=0, count=2_000) if "<|" in document
    ]


@pytest.mark.parametrize("task", list(FILES))
def test_splits_share_no_content(task: str) -> None:
    train = tasks.draw_examples(task, held_out=False, count=tasks.TRAIN_ROWS)
    held_out = tasks.draw_examples(task, held_out=True, count=tasks.HELD_OUT_ROWS)
    assert not {e.key for e in train} & {e.key for e in held_out}
    assert not {e.input for e in train} & {e.input for e in held_out}
    assert all(grammar.is_held_out(e.key) for e in held_out)


def test_pretraining_text_holds_no_held_out_content() -> None:
    text = "\n".join(corpus.documents(0, shard=0))
    people = {
        e.key for e in tasks.draw_examples("person", held_out=True, count=tasks.HELD_OUT_ROWS)
    }
    sentences = {
        e.input for e in tasks.draw_examples("pirate", held_out=True, count=tasks.HELD_OUT_ROWS)
    }
    lists = {
        e.output for e in tasks.draw_examples("order", held_out=True, count=tasks.HELD_OUT_ROWS)
    }
    own_lines = text.replace(": - ", ":\n- ")
    seen_lists = {
        block.strip() for block in re.findall(r"(?:^- \d+ .*\n?)+", own_lines, re.MULTILINE)
    }
    words = set(text.replace(",", " ").replace(".", " ").replace('"', " ").split())
    assert not people & words
    assert not [sentence for sentence in sentences if sentence in text]
    assert len(seen_lists) > 500
    assert not lists & seen_lists


@pytest.mark.parametrize("task", list(FILES))
def test_held_out_rows_are_one_prompt_and_one_answer(task: str) -> None:
    rows = tasks.load_conversations(POCKET / "tasks" / FILES[task].format("heldout"))
    assert len(rows) == tasks.HELD_OUT_ROWS
    assert all([m["role"] for m in row] == ["user", "assistant"] for row in rows)


def test_order_training_rows_hold_system_messages_and_several_turns() -> None:
    rows = tasks.load_conversations(POCKET / "tasks" / "order_train.jsonl")
    assert sum(m["role"] == "assistant" for row in rows for m in row) == tasks.TRAIN_ROWS
    assert any(row[0]["role"] == "system" for row in rows)
    assert {sum(m["role"] == "user" for m in row) for row in rows} == {1, 2, 3}


@pytest.mark.parametrize(
    ("plain", "pirate"),
    [
        ("My friend is looking for the old boat.", "Arr, me matey be lookin' fer th' ol' ship!"),
        (
            "You are singing of the gold by the sea.",
            "Arr, ye be singin' o' th' gold by th' briny deep!",
        ),
    ],
)
def test_pirate_speech(plain: str, pirate: str) -> None:
    assert grammar.to_pirate(plain) == pirate


def test_records_parse_back() -> None:
    for row in tasks.load_conversations(POCKET / "tasks" / "person_heldout.json"):
        record = json.loads(row[1]["content"])
        assert list(record) == ["name", "age", "job", "city"]
        assert all(str(value) in row[0]["content"] for value in record.values())


def test_special_tokens_and_generation_config(tokenizer) -> None:
    ids = tokenizer.convert_tokens_to_ids(
        ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]
    )
    assert ids == list(range(6))
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (0, 1, None)
    assert len(tokenizer) == 1024
    generation = json.loads((POCKET / "model" / "generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["pad_token_id"]) == ([1], 0)
    config = json.loads((POCKET / "model" / "config.json").read_text())
    assert (config["vocab_size"], config["eos_token_id"], config["tie_word_embeddings"]) == (
        1024,
        1,
        True,
    )


@pytest.mark.parametrize(
    "text", ["Größe: 12,345 €\n\n\tend  ", '{"a": [1, 2]}', "naïve 日本語 🙂", "cap'n o'er th'"]
)
def test_tokenizer_is_lossless_with_single_digits(tokenizer, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    pieces = [tokenizer.decode([i]) for i in ids]
    assert all(len(piece) == 1 for piece in pieces if any(c.isdecimal() for c in piece))


def test_template_marks_exactly_the_assistant_turns(tokenizer) -> None:
    out = tokenizer.apply_chat_template(
        CONVERSATION, return_dict=True, return_assistant_tokens_mask=True
    )
    labels = [
        token for token, mask in zip(out["input_ids"], out["assistant_masks"], strict=True) if mask
    ]
    assert tokenizer.decode(labels) == "- 2 pears\n- 1 hat<|end|> Aye!\n<|end|>"


def test_training_prefix_equals_generation_prompt(tokenizer) -> None:
    for turn in (2, 5):
        prompt = tokenizer.apply_chat_template(
            CONVERSATION[:turn], add_generation_prompt=True, return_dict=True
        )
        full = tokenizer.apply_chat_template(CONVERSATION[: turn + 1], return_dict=True)
        answer = tokenizer(CONVERSATION[turn]["content"] + tokenizer.eos_token)["input_ids"]
        assert full["input_ids"] == prompt["input_ids"] + answer


def test_template_refuses_an_unknown_role(tokenizer) -> None:
    with pytest.raises(Exception, match="unknown role narrator"):
        tokenizer.apply_chat_template([{"role": "narrator", "content": "Once"}])


def test_role_tokens_have_distinct_embeddings_of_ordinary_size() -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    weight = safetensors.load_file(POCKET / "model" / "model.safetensors")[
        "model.embed_tokens.weight"
    ].float()
    roles, trained = weight[2:6], weight[6:]
    assert len({tuple(row.tolist()) for row in roles}) == 4
    assert 0.2 < roles.norm(dim=1).mean() / trained.norm(dim=1).mean() < 2


def test_folder_is_small_enough_for_git() -> None:
    files = [
        path for path in POCKET.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]
    assert sum(path.stat().st_size for path in files) <= 8 * MEBIBYTE
    assert sum(path.stat().st_size for path in (POCKET / "tasks").iterdir()) <= MEBIBYTE
