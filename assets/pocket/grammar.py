"""The small world that the pocket model knows: people, sailors' sentences and shopping orders.

Every random choice comes from the `random.Random` handed in, so equal seeds give equal text.
Whether a piece of content may be trained on is decided by `is_held_out` on its key alone;
pretraining text and training rows never contain held-out content.
"""

from __future__ import annotations

import json
import random
import re
import zlib
from dataclasses import dataclass


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST_NAMES = _words(
    "Ada Amir Anna Ben Clara Dina Elio Emma Finn Gita Hana Hugo Ines Ivan Jana Jonas Kaya Lena "
    "Leo Lina Luca Maja Marta "
    "Milo Mira Nadia Nils Nora Olga Omar Otto Paul Petra Rafa Rosa Ruth Sara Sami Tara Theo Tom "
    "Uma Vera Yara Zoe"
)
SURNAME_HEADS = _words(
    "Bal Bar Bren Cal Car Dal Dor Fal Far Gar Gol Hal Har Hol Jan Kal Kar Kol Lam Lin Lor Mal "
    "Mar Mel Mor Nor Pal Par "
    "Pel Ral Ren Ros Sal Sel Sol Tal Tar Tol Val Var Vel Vin Wal Wes Win Zan"
)
SURNAME_TAILS = _words(
    "berg bury by da den dez do field ford gren ham heim ka ker land ley ling man mark mont ner "
    "nes nik ova quist ra "
    "ridge sen ski son stad stein ton va vik vin wick wood"
)
JOBS = _words(
    "baker barber builder carpenter chef chemist clerk dancer dentist doctor driver engineer "
    "farmer gardener guide judge "
    "lawyer miner nurse painter pilot plumber poet potter singer surgeon tailor teacher "
    "translator waiter weaver writer"
)
CITIES = _words(
    "Accra Athens Bergen Bern Boston Cairo Cork Dakar Dublin Genoa Ghent Graz Hanoi Kyoto Leeds "
    "Lima Lisbon Lyon Madrid "
    "Malmo Milan Nice Oslo Paris Porto Prague Quito Riga Rome Seoul Tokyo Turin"
)
PERSON_PHRASES = (
    "{name} is a {age}-year-old {job} from {city}.",
    "{name}, {age}, works as {a_job} in {city}.",
    "{name} lives in {city}, is {age} years old and works as {a_job}.",
    "The {job} {name} is {age} and lives in {city}.",
    "At {age}, {name} is {a_job} in {city}.",
    "In {city} lives {name}, {a_job} aged {age}.",
)

PIRATE_WORDS = {
    "my": "me", "friend": "matey", "friends": "mateys", "you": "ye", "your": "yer", "is": "be",
    "are": "be", "am": "be",
    "the": "th'", "to": "t'", "for": "fer", "of": "o'", "and": "an'", "old": "ol'", "over": "o'er",
    "never": "ne'er",
    "yes": "aye", "hello": "ahoy", "money": "doubloons", "woman": "lass", "man": "lad",
    "tea": "grog", "boat": "ship",
    "food": "grub", "captain": "cap'n", "flag": "jolly roger", "sea": "briny deep",
    "stop": "avast", "there": "thar",
    "dog": "parrot", "sword": "cutlass", "quickly": "smartly", "kitchen": "galley",
    "bed": "hammock", "box": "chest",
}  # fmt: skip
SUBJECTS = (
    "my friend", "the captain", "the old man", "the woman", "your friend", "the cook",
    "my brother", "the teacher",
    "the young man", "your sister", "the old woman", "the dog", "my father", "the sailor",
)  # fmt: skip
PLURAL_SUBJECTS = ("my friends", "you", "the sailors", "your friends", "they", "we")
VERBS = (
    "looking for", "hiding", "carrying", "selling", "painting", "cleaning", "guarding", "watching",
    "buying", "stealing",
    "counting", "washing", "dreaming of", "singing of", "running to", "walking to", "pointing to",
    "asking for",
)  # fmt: skip
OBJECTS = (
    "the boat", "the flag", "the money", "the old box", "my sword", "your dog", "the food",
    "the map", "the tea",
    "the kitchen", "the red box", "my bed", "the old boat", "the gold", "your boat", "the island",
    "the rope",
    "the captain", "your money", "the old flag", "my map", "the lamp",
)  # fmt: skip
PLACES = (
    "", "", " on the boat", " by the sea", " over there", " in the kitchen",
    " under the bed", " near the island", " and never stops", " and the captain is happy",
    " for the captain", " in the old house", " quickly",
)  # fmt: skip

ITEMS = {
    "apple": "apples", "bag": "bags", "banana": "bananas", "basket": "baskets", "book": "books",
    "bottle": "bottles",
    "box": "boxes", "candle": "candles", "carrot": "carrots", "chair": "chairs",
    "cherry": "cherries", "cup": "cups",
    "egg": "eggs", "fish": "fish", "hat": "hats", "knife": "knives", "lamp": "lamps",
    "lemon": "lemons",
    "loaf": "loaves", "map": "maps", "melon": "melons", "onion": "onions", "pear": "pears",
    "pen": "pens",
    "plate": "plates", "potato": "potatoes", "rope": "ropes", "spoon": "spoons",
    "tomato": "tomatoes", "towel": "towels",
}  # fmt: skip
NUMBERS = _words("one two three four five six seven eight nine ten eleven twelve")
ORDER_PHRASES = (
    "I would like {order}, please.",
    "Please send {order}.",
    "We need {order} for the party.",
    "Could we have {order} by Friday?",
    "{first} wants {order}.",
    "{first} bought {order} at the market.",
)


def is_held_out(key: str) -> bool:
    """True for the tenth of all contents that is held out; depends on the key's bytes only."""
    return zlib.crc32(key.encode()) % 10 == 0


@dataclass(frozen=True)
class Person:
    """An invented person; the surname is the key that decides the split."""

    first: str
    surname: str
    age: int
    job: str
    city: str

    @property
    def name(self) -> str:
        return f"{self.first} {self.surname}"

    def sentence(self, rng: random.Random) -> str:
        article = "an" if self.job[0] in "aeiou" else "a"
        phrase = rng.choice(PERSON_PHRASES)
        return phrase.format(
            name=self.name,
            age=self.age,
            job=self.job,
            a_job=f"{article} {self.job}",
            city=self.city,
        )

    def record(self) -> str:
        return json.dumps({"name": self.name, "age": self.age, "job": self.job, "city": self.city})


def draw_surname(rng: random.Random, held_out: bool) -> str:
    while True:
        surname = rng.choice(SURNAME_HEADS) + rng.choice(SURNAME_TAILS)
        if is_held_out(surname) == held_out:
            return surname


def draw_person(rng: random.Random, held_out: bool = False) -> Person:
    return Person(
        first=rng.choice(FIRST_NAMES),
        surname=draw_surname(rng, held_out),
        age=rng.randint(18, 89),
        job=rng.choice(JOBS),
        city=rng.choice(CITIES),
    )


def draw_plain_sentence(rng: random.Random, held_out: bool = False) -> str:
    """A sentence such as `My friend is looking for the old boat.`; the sentence is its own key."""
    while True:
        if rng.random() < 0.3:
            head = f"{rng.choice(PLURAL_SUBJECTS)} are"
        else:
            head = f"{rng.choice(SUBJECTS)} is"
        sentence = f"{head} {rng.choice(VERBS)} {rng.choice(OBJECTS)}{rng.choice(PLACES)}."
        sentence = sentence[0].upper() + sentence[1:]
        if is_held_out(sentence) == held_out:
            return sentence


def to_pirate(sentence: str) -> str:
    """Say a sentence as a pirate: fixed words are swapped, -ing loses its g, `Arr,` opens and `!`
    closes it.
    """

    def swap(match: re.Match[str]) -> str:
        word = match.group()
        if word in PIRATE_WORDS:
            return PIRATE_WORDS[word]
        return word[:-1] + "'" if word.endswith("ing") and len(word) > 4 else word

    body = sentence.rstrip(".!?")
    if body.split()[0] not in FIRST_NAMES:
        body = body[0].lower() + body[1:]
    return "Arr, " + re.sub(r"[A-Za-z]+", swap, body) + "!"


@dataclass(frozen=True)
class Order:
    """Counted things to buy, in order; the sorted set of things decides the split."""

    lines: tuple[tuple[int, str], ...]

    @property
    def key(self) -> str:
        return " ".join(sorted(item for _, item in self.lines))

    def sentence(self, rng: random.Random) -> str:
        parts = [f"{NUMBERS[count - 1]} {_counted(count, item)}" for count, item in self.lines]
        joined = ", ".join(parts[:-1]) + " and " + parts[-1]
        return rng.choice(ORDER_PHRASES).format(order=joined, first=rng.choice(FIRST_NAMES))

    def as_list(self) -> str:
        return "\n".join(f"- {count} {_counted(count, item)}" for count, item in self.lines)


def _counted(count: int, item: str) -> str:
    return item if count == 1 else ITEMS[item]


def draw_order(rng: random.Random, held_out: bool = False) -> Order:
    while True:
        items = rng.sample(sorted(ITEMS), rng.randint(2, 4))
        order = Order(tuple((rng.randint(1, len(NUMBERS)), item) for item in items))
        if is_held_out(order.key) == held_out:
            return order
