"""The advice for rows of no known format: the `columns` that would read them, from their keys.

The advice depends on keys alone, so that all rows of a file have one reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

# Keys of a question and of an answer that are known by themselves, if a row has one of each.
QUESTION_KEYS = frozenset(
    {"prompt", "instruction", "question", "query", "problem", "user", "human", "input", "inputs"}
)
ANSWER_KEYS = frozenset(
    {
        "completion", "output", "answer", "answers", "response", "solution", "assistant", "target",
        "targets", "generation", "gpt", "reply",
    }
)  # fmt: skip
LIST_KEYS = frozenset({"conversation", "dialogue", "dialog", "contents"})
"""Other keys of a list of turns."""
_QUESTION_WORDS = QUESTION_KEYS | {
    "instructions", "frage", "pregunta", "domanda", "pergunta", "вопрос", "问题", "問題", "質問",
    "질문", "soru", "vraag", "pytanie", "fråga", "article",
}  # fmt: skip
_ANSWER_WORDS = ANSWER_KEYS | {
    "chosen", "antwort", "respuesta", "réponse", "reponse", "risposta", "resposta", "ответ",
    "回答", "答案", "答え", "답변", "cevap", "antwoord", "odpowiedź", "svar", "summary",
    "completions", "responses", "outputs", "translation",
}  # fmt: skip
# Keys of a row's origin, which are never its text.
_ORIGIN = re.compile(
    r"(.*_)?(id|idx|index|uuid|hash|source|dataset|lang|language|category|categories|topic|url"
    r"|date|timestamp|title|license|model|split|type|tag|tags|score|label|labels|meta|metadata"
    r")",
    re.IGNORECASE,
)
_WORDS = re.compile(r"[\W_]+")
_PLAIN = re.compile(r"\w[\w .-]*")


def keys_of(row: Mapping[str, Any]) -> str:
    """The keys of a row for a message."""
    return ", ".join(map(str, row)) or "(none)"


def hint_for(row: Mapping[str, Any]) -> str:
    """What to set for a row of no known format."""
    columns = proposed_columns(row)
    mapped = ", ".join(f"{key}: {_yaml(name)}" for key, name in columns.items() if key != name)
    line = f"`columns: {{{mapped}}}`"
    if (rejected := _of_preference(row, "rejected")) and (chosen := _of_preference(row, "chosen")):
        pair = f"{chosen} and {rejected} are a preference pair"
        if chosen not in columns.values() or "text" in columns:
            return f"{pair} without a question, which no format reads"
        return (
            f"{pair}: to train the chosen answers alone, set the source's {line} and "
            f"`data.unused_keys: {{allow: [{rejected}]}}`"
        )
    if columns == {"text": "text"}:
        return "to train text alone, as plain text, set the source's `format: text`"
    if "text" in columns:
        return f"to train plain text, set the source's {line}"
    if columns:
        return f"if these are the columns to train, set the source's {line}"
    return (
        "for a question and an answer set the source's `columns: {prompt: KEY, completion: KEY}`, "
        "for a list of turns `columns: {messages: KEY}`, for plain text `columns: {text: KEY}`"
    )


def proposed_columns(row: Mapping[str, Any]) -> dict[str, str]:
    """The `columns` of a source that would read a row of no known format; empty without a guess."""
    keys = [key for key in row if isinstance(key, str) and not key.startswith("rejected")]
    lists = [key for key in keys if _is_list_of_turns(row[key])]
    lists = [key for key in lists if key.startswith("chosen")] or lists
    if len(lists) == 1:
        return {"messages": lists[0]}
    questions, answers = _worded(keys, _QUESTION_WORDS), _worded(keys, _ANSWER_WORDS)
    if questions and answers:
        return {"prompt": questions[0], "completion": answers[0]}
    texts = [key for key in keys if isinstance(row[key], str) and not _ORIGIN.fullmatch(key)]
    if len(texts) == 2:
        swapped = questions == texts[1:] or answers == texts[:1]
        prompt, completion = texts[::-1] if swapped else texts
        return {"prompt": prompt, "completion": completion}
    if len(texts) == 1 and (texts == keys or texts == ["text"]):
        return {"text": texts[0]}
    return {}


def worded_pair(row: Mapping[str, Any]) -> dict[str, str]:
    """The `columns` for the keys that are named after a question and an answer, such as `Question`.

    Empty unless there is exactly one key of each.
    """
    keys = [key for key in row if isinstance(key, str)]
    questions, answers = _worded(keys, _QUESTION_WORDS), _worded(keys, _ANSWER_WORDS)
    if len(questions) == len(answers) == 1:
        return {"prompt": questions[0], "completion": answers[0]}
    return {}


def _worded(keys: list[str], words: frozenset[str]) -> list[str]:
    """The keys that are one of the words, or else those that have one between other words."""
    exact = [key for key in keys if key.casefold() in words]
    return exact or [key for key in keys if words & set(_WORDS.split(key.casefold()))]


def _of_preference(row: Mapping[str, Any], name: str) -> str | None:
    """The key of a preference pair: chosen or rejected, alone or as in `chosen_messages`."""
    return next((key for key in row if isinstance(key, str) and key.startswith(name)), None)


def _is_list_of_turns(value: Any) -> bool:
    turn = value[0] if isinstance(value, list) and value else None
    return isinstance(turn, Mapping) and bool(turn.keys() & {"role", "from"})


def _yaml(name: str) -> str:
    return name if _PLAIN.fullmatch(name) else json.dumps(name, ensure_ascii=False)
