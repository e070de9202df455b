"""Questions to an endpoint through the stock OpenAI client."""

from __future__ import annotations

from typing import Any

import openai

QUESTION = "who sold the old map to Mira from Oslo"


def ask(client: openai.OpenAI, model: str, text: str = QUESTION, **options: Any) -> Any:
    """The client's reply to one user message; greedy and short unless `options` change that."""
    options = {"temperature": 0, "max_tokens": 16, **options}
    return client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": text}], **options
    )


def answer_text(client: openai.OpenAI, model: str, text: str = QUESTION, **options: Any) -> str:
    """The text of the answer to one user message."""
    return ask(client, model, text, **options).choices[0].message.content
