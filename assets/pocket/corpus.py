"""Pretraining text for the pocket model: plain documents, no instruction or chat format anywhere.

What a task asks for later is here as a completion: a sentence about a person next to its JSON
record, a sentence next to the same in pirate speech, an order next to its list. Each kind of
document has other continuations too, so the base has no reason to prefer one of them. Held-out
content (see `grammar.is_held_out`) never appears.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable

import grammar as g

SHARD_DOCUMENTS = 5_000
PERSON_LABELS = ("As JSON:", "The record:", "In the file:", "JSON record:", "Person:")
PIRATE_LABELS = ("As a pirate:", "The pirate says:", "In pirate speech:", "Pirate:")
ORDER_LABELS = ("As a list:", "The list:", "Shopping list:", "To buy:")


def _join(rng: random.Random, parts: list[str]) -> str:
    return rng.choice(("\n", "\n", "\n\n", " \n")).join(parts)


def _labelled(rng: random.Random, labels: tuple[str, ...], text: str) -> str:
    return (
        f"{rng.choice(labels)}{rng.choice((' ', chr(10)))}{text}" if rng.random() < 0.25 else text
    )


def _person_facts(rng: random.Random, person: g.Person) -> str:
    first, pronoun = person.first, rng.choice(("She", "He"))
    facts = (
        f"{first} is {person.age} years old.",
        f"{pronoun} works as a {person.job}.",
        f"The {person.job} lives in {person.city}.",
        f"{person.name} comes from {person.city}.",
        f"Everyone in {person.city} knows {person.name}.",
        f"Next year {first} will be {person.age + 1}.",
        f"The family name is {person.surname}.",
        f"{person.city} is a good place for a {person.job}.",
    )
    return " ".join(rng.sample(facts, rng.randint(1, 4)))


def person_document(rng: random.Random) -> str:
    parts = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        person = g.draw_person(rng)
        views = [person.sentence(rng), _labelled(rng, PERSON_LABELS, person.record())]
        if rng.random() < 0.2:
            views.reverse()
        extra = rng.random()
        if extra < 0.15:
            views[1] = person.sentence(rng)
        elif extra < 0.3:
            views.insert(rng.randint(0, 2), _person_facts(rng, person))
        elif extra < 0.35:
            views[1] = g.draw_plain_sentence(rng)
        parts += views
    return _join(rng, parts)


def pirate_document(rng: random.Random) -> str:
    parts = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        plain = g.draw_plain_sentence(rng)
        views = [plain, _labelled(rng, PIRATE_LABELS, g.to_pirate(plain))]
        if rng.random() < 0.15:
            views.reverse()
        elif rng.random() < 0.2:
            views[1] = g.draw_plain_sentence(rng)
        parts += views
    return _join(rng, parts)


def order_document(rng: random.Random) -> str:
    parts = []
    for _ in range(rng.choice((1, 1, 1, 2))):
        order = g.draw_order(rng)
        views = [order.sentence(rng), _labelled(rng, ORDER_LABELS, order.as_list())]
        if rng.random() < 0.15:
            views.reverse()
        elif rng.random() < 0.2:
            views[1] = order.sentence(rng)
        parts += views
    return _join(rng, parts)


def story_document(rng: random.Random) -> str:
    """A few sentences in a row, so that any sentence may also be followed by just another one."""
    sentences = []
    for _ in range(rng.randint(2, 6)):
        kind = rng.randrange(5)
        if kind == 0:
            sentences.append(g.draw_person(rng).sentence(rng))
        elif kind == 1:
            sentences.append(g.draw_order(rng).sentence(rng))
        elif kind == 2:
            sentences.append(_person_facts(rng, g.draw_person(rng)))
        else:
            sentences.append(g.draw_plain_sentence(rng))
    return rng.choice((" ", "\n", "\n\n")).join(sentences)


def list_document(rng: random.Random) -> str:
    """Small transformations of lists: sorted, reversed, counted, plural; and sums."""
    words = rng.sample(
        rng.choice((sorted(g.ITEMS), g.JOBS, g.CITIES, g.FIRST_NAMES)), rng.randint(3, 5)
    )
    listed = ", ".join(words)
    a, b = rng.randint(1, 60), rng.randint(1, 39)
    item = rng.choice(sorted(g.ITEMS))
    return rng.choice((
        f"{listed}\nSorted: {', '.join(sorted(words))}",
        f"{listed}\nBackwards: {', '.join(reversed(words))}",
        f"{listed}\nThat is {g.NUMBERS[len(words) - 1]} words.",
        f"{listed}\n" + "\n".join(f"- {word}" for word in words),
        f"First comes {words[0]}, then {words[1]}, and {words[-1]} is the last.",
        f"{a} + {b} = {a + b}\n{a + b} - {b} = {a}",
        f"One {item}, two {g.ITEMS[item]}.",
    ))  # fmt: skip


def prose_document(rng: random.Random) -> str:
    """Plain English about writing and speaking, so that the words of an instruction are known
    words.
    """
    person = g.draw_person(rng)
    return rng.choice((
        f"{person.first} likes to write a short text about the {person.job} every day.",
        f"The sentence is easy to say and easy to read, and {person.first} can write it as a list.",
        "A record gives the name, the age, the job and the city of a person.",
        "People turn a long text into a list, and they write each thing on its own line.",
        f"{person.first} speaks like a pirate and can say every sentence like one.",
        f"This person asked a question, and the {person.job} gave a good answer.",
        f"What do you need from the market? {person.first} will make this order into a list.",
        f"Give me the data as JSON, said the {person.job}, and make it short.",
    ))  # fmt: skip


KINDS: tuple[tuple[Callable[[random.Random], str], int], ...] = (
    (person_document, 34),
    (pirate_document, 22),
    (order_document, 22),
    (story_document, 12),
    (list_document, 7),
    (prose_document, 3),
)


def documents(seed: int, shard: int, count: int = SHARD_DOCUMENTS) -> list[str]:
    """The documents of one shard. Equal (seed, shard, count) gives equal text on any machine."""
    rng = random.Random(f"pocket-{seed}-{shard}")
    makers = rng.choices([kind for kind, _ in KINDS], [weight for _, weight in KINDS], k=count)
    return [make(rng) for make in makers]


def main() -> None:
    parser = argparse.ArgumentParser(description="Print a sample of the pretraining documents.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=20)
    args = parser.parse_args()
    for document in documents(args.seed, shard=0, count=args.count):
        print(document, end="\n---\n")


if __name__ == "__main__":
    main()
