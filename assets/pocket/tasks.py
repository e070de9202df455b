"""The three instruction tasks for the pocket model, written as training files and held-out files.

    person   a sentence about a person -> a JSON record      alpaca rows, one JSON array
    pirate   a sentence -> the same in pirate speech          alpaca rows, one a line
    order    a shopping order -> a Markdown list              chat messages, one conversation a line

Held-out rows are single-turn, one prompt and one exact answer, and share no content with the
training rows or the pretraining text: their surnames, sentences and sets of things appear nowhere
else.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grammar as g

TRAIN_ROWS = 1_000
HELD_OUT_ROWS = 200
SEED = 0


@dataclass(frozen=True)
class Example:
    """One prompt and its one right answer; `key` is the content that decides the split."""

    instruction: str
    input: str
    output: str
    key: str

    @property
    def prompt(self) -> str:
        return f"{self.instruction}\n\n{self.input}"


def draw_person_example(rng: random.Random, held_out: bool) -> Example:
    instruction = rng.choice(
        (
            "Write this person as a JSON record.",
            "Give me the record as JSON.",
            "Turn this into JSON.",
        )
    )
    person = g.draw_person(rng, held_out)
    return Example(instruction, person.sentence(rng), person.record(), person.surname)


def draw_pirate_example(rng: random.Random, held_out: bool) -> Example:
    instruction = rng.choice(
        ("Say this like a pirate.", "Turn this into pirate speech.", "How would a pirate say it?")
    )
    sentence = g.draw_plain_sentence(rng, held_out)
    return Example(instruction, sentence, g.to_pirate(sentence), sentence)


def draw_order_example(rng: random.Random, held_out: bool) -> Example:
    instruction = rng.choice(
        ("Write this order as a list.", "Make a shopping list.", "Turn the order into a list.")
    )
    order = g.draw_order(rng, held_out)
    return Example(instruction, order.sentence(rng), order.as_list(), order.key)


TASKS: dict[str, Callable[[random.Random, bool], Example]] = {
    "person": draw_person_example,
    "pirate": draw_pirate_example,
    "order": draw_order_example,
}
SYSTEM_MESSAGES = ("You write lists.", "You help in a shop.")


def draw_examples(task: str, held_out: bool, count: int, seed: int = SEED) -> list[Example]:
    """`count` examples with distinct inputs from one side of the split."""
    rng = random.Random(f"{task}-{'heldout' if held_out else 'train'}-{seed}")
    examples: dict[str, Example] = {}
    while len(examples) < count:
        example = TASKS[task](rng, held_out)
        examples.setdefault(example.input, example)
    return list(examples.values())


def alpaca_row(example: Example) -> dict[str, str]:
    return {"instruction": example.instruction, "input": example.input, "output": example.output}


def messages_row(
    turns: list[Example], system: str | None = None
) -> dict[str, list[dict[str, str]]]:
    messages = [{"role": "system", "content": system}] if system else []
    for turn in turns:
        messages.append({"role": "user", "content": turn.prompt})
        messages.append({"role": "assistant", "content": turn.output})
    return {"messages": messages}


def conversations(
    examples: list[Example], seed: int = SEED
) -> list[dict[str, list[dict[str, str]]]]:
    """Group examples into conversations of one to three turns, some of them opened by a system
    message.
    """
    rng = random.Random(f"conversations-{seed}")
    rows, position = [], 0
    while position < len(examples):
        num_turns = rng.choice((1, 1, 1, 1, 2, 3))
        system = rng.choice(SYSTEM_MESSAGES) if rng.random() < 0.25 else None
        rows.append(messages_row(examples[position : position + num_turns], system))
        position += num_turns
    return rows


def _as_lines(rows: list) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _as_array(rows: list) -> str:
    return "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"


def render_files(seed: int = SEED) -> dict[str, str]:
    """File name -> text of every task file, the same on any machine."""
    drawn = {
        (task, split): draw_examples(task, split == "heldout", count, seed)
        for task in TASKS
        for split, count in (("train", TRAIN_ROWS), ("heldout", HELD_OUT_ROWS))
    }
    files = {}
    for split in ("train", "heldout"):
        files[f"person_{split}.json"] = _as_array([alpaca_row(e) for e in drawn["person", split]])
        files[f"pirate_{split}.jsonl"] = _as_lines([alpaca_row(e) for e in drawn["pirate", split]])
    files["order_train.jsonl"] = _as_lines(conversations(drawn["order", "train"], seed))
    files["order_heldout.jsonl"] = _as_lines([messages_row([e]) for e in drawn["order", "heldout"]])
    return files


def load_conversations(path: Path) -> list[list[dict[str, str]]]:
    """Read one task file of either format as lists of messages."""
    text = path.read_text(encoding="utf-8")
    rows = (
        json.loads(text)
        if path.suffix == ".json"
        else [json.loads(line) for line in text.splitlines()]
    )
    return [
        row["messages"] if "messages" in row else messages_row([Example(**row, key="")])["messages"]
        for row in rows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the task files of the pocket model.")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "tasks", help="folder to write to"
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, text in render_files().items():
        (args.out / name).write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
