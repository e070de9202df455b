"""The body of a chat request: supported and ignored fields, and a 400 that names any other."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.api.protocol import ApiError, chunk, completion, event, parse_chat, usage_chunk
from serve_app.engines.protocol import AdapterRef, Delta, GenerationRequest

HI = [{"role": "user", "content": "hi"}]


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": HI, **fields}).encode()


def test_every_supported_field_reaches_the_engine() -> None:
    sampling = {"max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "seed": -3, "stop": ["a", "b"]}
    chat = parse_chat(body(**sampling, stream=True, stream_options={"include_usage": True}))
    adapter = AdapterRef("k", "m@k")
    assert chat.generation(adapter) == GenerationRequest(HI, adapter, 5, 0.5, 0.9, -3, ("a", "b"))
    assert chat.stream and chat.include_usage


def test_the_defaults_are_openais() -> None:
    chat = parse_chat(body())
    assert chat.generation(None) == GenerationRequest(HI, None, None, 1.0, 1.0, None, ())
    assert not chat.stream and not chat.include_usage


def test_equivalent_spellings_give_the_same_request() -> None:
    assert parse_chat(body(max_completion_tokens=7, max_tokens=9)).generation(None).max_tokens == 7
    assert parse_chat(body(stop="x")).generation(None).stop == ("x",)
    assert parse_chat(body(temperature=1)).generation(None).temperature == 1.0
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    chat = parse_chat(body(messages=[{"role": "developer", "content": parts}]))
    assert chat.generation(None).messages == [{"role": "system", "content": "ab"}]


def test_fields_and_values_that_change_nothing_are_ignored() -> None:
    fields = {
        "user": "me",
        "metadata": {"a": "b"},
        "store": False,
        "n": 1,
        "logprobs": False,
        "presence_penalty": 0.0,
    }
    fields |= {
        "frequency_penalty": None,
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
    }
    assert parse_chat(body(**fields)).generation(None) == parse_chat(body()).generation(None)
    replayed = {
        "role": "assistant",
        "content": "x",
        "refusal": None,
        "tool_calls": None,
        "annotations": [],
    }
    chat = parse_chat(body(messages=[*HI, replayed, *HI]))
    assert chat.generation(None).messages[1]["content"] == "x"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": ""}, "model"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages.0.content",
        ),
        (
            {"messages": [{"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}]},
            "messages.0",
        ),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"seed": 2**63}, "seed"),
        ({"stop": ["a", ""]}, "stop"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"n": 2}, None),
        ({"logprobs": True}, None),
        ({"response_format": {"type": "json_object"}}, None),
        ({"chat_template_kwargs": {"x": 1}}, None),
        ({"anything_else": 1}, None),
    ],
    ids=str,
)
def test_an_unsupported_field_or_value_is_refused_by_name(
    fields: dict[str, Any], param: str | None
) -> None:
    with pytest.raises(ApiError) as caught:
        parse_chat(body(**fields))
    error = caught.value
    assert error.status == 400 and error.body()["error"]["type"] == "invalid_request_error"
    if param:
        assert (error.param or "").startswith(param)
    else:
        assert next(iter(fields)) in error.message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
FIELDS = [
    "model",
    "messages",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "seed",
    "stop",
    "stream",
]


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([*FIELDS, "stream_options", "n", "tools", "x"]), JSON, max_size=5
    )
)
def test_any_json_is_accepted_or_refused_and_never_crashes(fields: dict[str, Any]) -> None:
    try:
        parse_chat(body(**fields)).generation(None)
    except ApiError as error:
        assert error.status == 400 and json.dumps(error.body())


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_refused_with_400(raw: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        parse_chat(raw)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "raw", [b"[" * 200_000, b'{"model":' + b'{"a":' * 50_000, b'{"model":"\\ud800","messages":[]}']
)
def test_deep_and_broken_json_is_refused(raw: bytes) -> None:
    with pytest.raises(ApiError):
        parse_chat(raw)


def test_the_stock_client_reads_answers_and_chunks() -> None:
    from openai.types.chat import ChatCompletion, ChatCompletionChunk

    answer = Delta("hello", "stop", 3, 2)
    usage = ChatCompletion.model_validate(completion("id", "m", answer), strict=True).usage
    assert usage and (usage.prompt_tokens, usage.total_tokens) == (3, 5)
    for data in (
        chunk("id", "m", {"content": "é"}),
        chunk("id", "m", {}, "length"),
        usage_chunk("id", "m", answer),
    ):
        text = event(data)
        assert text.startswith("data: ") and text.endswith("\n\n") and "\n" not in text[:-2]
        ChatCompletionChunk.model_validate_json(text[6:])
    assert event("[DONE]") == "data: [DONE]\n\n"
