"""The advice for rows of no known format: the `columns` that would read them, from their keys.

The advice depends on keys alone, so that all rows of a file have one reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from pipelines.data.convert.unused_keys import PREFERENCE, meaning

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
    "completions", "responses", "outputs", "solutions", "translation",
}  # fmt: skip
# Keys of a row's origin, which are never its text.
_ORIGIN = re.compile(
    r"(.*_)?(id|idx|index|uuid|hash|source|dataset|lang|language|category|categories|topic|url"
    r"|date|timestamp|title|license|model|split|type|tag|tags|score|label|labels|meta|metadata"
    r")",
    re.IGNORECASE,
)
_WORDS = re.compile(r"[\W_]+")
_LISTS = ("messages", "conversations", *LIST_KEYS)
_ANSWERING = ("assistant", "gpt", "model", "chatbot", "bot")
_CHOSEN = re.compile(r"chosen|preferred|winn|better|response_j$", re.IGNORECASE)
_PLAIN = re.compile(r"\w[\w .-]*")


def keys_of(row: Mapping[str, Any]) -> str:
    """The keys of a row for a message."""
    return ", ".join(map(str, row)) or "(none)"


def hint_for(row: Mapping[str, Any]) -> str:
    """What to set for a row of no known format."""
    columns = proposed_columns(row)
    mapped = ", ".join(f"{key}: {_yaml(name)}" for key, name in columns.items() if key != name)
    line = f"`columns: {{{mapped}}}`"
    if row.keys() & {"role", "from"}:
        return (
            "the row is one turn of a conversation: join the turns of each conversation in one "
            "row, as a list under messages"
        )
    rivals = [key for key in map(str, row) if meaning(key) == PREFERENCE and _is_answer(row[key])]
    chosen = next((key for key in rivals if _CHOSEN.match(key)), None)
    rejected = next((key for key in rivals if key != chosen), None)
    if len(rivals) > 1 and not chosen:
        return (
            f"{' and '.join(rivals)} are the answers of a preference: write the better one of each "
            "row under a key of its own, such as completion"
        )
    if rejected and chosen:
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
    lists = [key for key in lists if _CHOSEN.match(key)] or lists
    questions = _worded(keys, _QUESTION_WORDS) or [key for key in keys if key in _LISTS]
    if len(lists) == 1:
        begins = row[lists[0]][0]
        is_answer = (begins.get("role") or begins.get("from")) in _ANSWERING
        if not is_answer or not questions:
            return {"messages": lists[0]}
        return {"prompt": _path_of_turns(row, questions[0]), "completion": lists[0]}
    questions, answers = _worded(keys, _QUESTION_WORDS), _worded(keys, _ANSWER_WORDS)
    if questions and answers and questions[0] != answers[0]:
        return {"prompt": questions[0], "completion": answers[0]}
    nested = [(key, proposed_columns(value)) for key, value in row.items() if _is_object(value)]
    nested = [(key, columns) for key, columns in nested if columns.keys() - {"text"}]
    if len(nested) == 1:
        return {name: f"{nested[0][0]}.{column}" for name, column in nested[0][1].items()}
    texts = [key for key in keys if isinstance(row[key], str) and not _ORIGIN.fullmatch(key)]
    texts = [key for key in texts if not meaning(key)]
    if len(texts) == 2 and texts[0][:-1] != texts[1][:-1]:  # sentence1 is no question of sentence2
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
    if len(questions) == len(answers) == 1 and questions != answers:
        return {"prompt": questions[0], "completion": answers[0]}
    return {}


def _worded(keys: list[str], words: frozenset[str]) -> list[str]:
    """The keys that are one of the words, or else those that have one between other words."""
    exact = [key for key in keys if key.casefold() in words]
    return exact or [key for key in keys if words & set(_WORDS.split(key.casefold()))]


def _is_answer(value: Any) -> bool:
    return isinstance(value, str | list | Mapping)


def _is_object(value: Any) -> bool:
    """True for an object that may have the keys of a row, and is no turn."""
    return isinstance(value, Mapping) and bool(value) and not value.keys() & {"role", "from"}


def _path_of_turns(row: Mapping[str, Any], key: str) -> str:
    """The key of a question, or its path where the turns lie in an object."""
    value = row[key]
    inner = (
        [name for name, item in value.items() if _is_list_of_turns(item)]
        if _is_object(value)
        else []
    )
    return f"{key}.{inner[0]}" if inner else key


def _is_list_of_turns(value: Any) -> bool:
    turn = value[0] if isinstance(value, list) and value else None
    return isinstance(turn, Mapping) and bool(turn.keys() & {"role", "from"})


def _yaml(name: str) -> str:
    return name if _PLAIN.fullmatch(name) else json.dumps(name, ensure_ascii=False)
