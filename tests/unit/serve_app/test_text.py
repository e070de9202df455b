"""Text piece by piece: pieces add up, and have no half characters or parts of stop strings."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.chat import ChatRenderer
from serve_app.engines.transformers.text import TextStream

PIECES = ["a", "b", "ab", "é", "😀", " ", "stop", "st", "op"]
BYTES = [bytes([b]) for b in "é😀".encode()] + [p.encode() for p in PIECES]


def decode(ids: object) -> str:
    return b"".join(BYTES[i] for i in ids).decode(errors="replace")  # type: ignore[attr-defined]


def run(
    ids: list[int], stops: tuple[str, ...] = (), at_once: bool = False
) -> tuple[list[str], bool]:
    stream = TextStream(decode, stops, at_once)
    pieces = []
    for token in ids:
        pieces.append(stream.push(token))
        if stream.stopped:
            break
    return [*pieces, stream.finish()], stream.stopped


@given(st.lists(st.integers(0, len(BYTES) - 1), max_size=40), st.booleans())
def test_the_pieces_add_up_to_the_decoded_text(ids: list[int], at_once: bool) -> None:
    assert "".join(run(ids, at_once=at_once)[0]) == decode(ids)


@given(
    st.lists(st.integers(6, len(BYTES) - 1), max_size=40),
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=4),
)
def test_a_stop_string_and_the_text_after_it_are_never_returned(
    ids: list[int], stops: list[str]
) -> None:
    decoded = decode(ids)
    for at_once in (False, True):
        pieces, stopped = run(ids, tuple(stops), at_once)
        text = "".join(pieces)
        assert stopped == any(stop in decoded for stop in stops)
        assert decoded.startswith(text) and not any(stop in text for stop in stops)
        if stopped:
            assert any(decoded.startswith(stop, len(text)) for stop in stops)
        else:
            assert text == decoded


@given(st.text(alphabet="aé😀ß漢", min_size=1, max_size=12))
def test_no_piece_has_half_a_character(text: str) -> None:
    stream = TextStream(lambda ids: bytes(ids).decode(errors="replace"), ())
    pieces = [stream.push(byte) for byte in text.encode()]
    assert "\ufffd" not in "".join(pieces) and "".join(pieces) == text and stream.finish() == ""


def test_text_is_withheld_only_while_it_may_begin_a_stop_string() -> None:
    stream = TextStream(lambda ids: "".join(map(chr, ids)), ("END",))
    assert [stream.push(ord(c)) for c in "aEbENDx"[:6]] == ["a", "", "Eb", "", "", ""]
    assert stream.stopped and stream.finish() == ""


@settings(max_examples=60)
@given(st.data())
def test_the_pieces_add_up_with_the_real_tokenizer(
    renderer: ChatRenderer, data: st.DataObject
) -> None:
    ids = data.draw(st.lists(st.integers(0, 1023), max_size=60))
    stream = TextStream(renderer.decode, ())
    assert "".join([stream.push(i) for i in ids]) + stream.finish() == renderer.decode(ids)


def test_a_late_token_decodes_no_more_ids_than_an_early_one() -> None:
    sizes: list[int] = []

    def counting(ids: object) -> str:
        sizes.append(len(ids))  # type: ignore[arg-type]
        return "x" * len(ids)  # type: ignore[arg-type]

    stream = TextStream(counting, ())
    for token in range(500):
        stream.push(token)
    assert max(sizes) <= 2
