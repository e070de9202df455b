"""Bad rows of many kinds cost only themselves and are listed with line and reason."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from pipelines.config.recipe import parse_recipe
from pipelines.core.errors import UserError
from pipelines.core.progress import SILENT
from pipelines.data.stage import prepare_step
from pipelines.steps.inputs import Inputs
from pipelines.steps.runner import Runner
from tests.stages import prepare

NUM_GOOD = 10_000


def row(**values) -> bytes:
    return json.dumps(values).encode()


def turns(*pairs: tuple[str, object]) -> bytes:
    return row(messages=[{"role": role, "content": content} for role, content in pairs])


def calling(arguments: object) -> bytes:
    call = {"function": {"name": "f", "arguments": arguments}}
    return row(
        messages=[{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [call]}]
    )


ANSWER = {"role": "assistant", "content": "b"}
BAD = [
    (
        row(messages=[{"role": "user", "content": "a"}, {**ANSWER, "tool_calls": 5}]),
        "messages[1]: tool_calls is a list of calls, this is int",
    ),
    (b'{"instruction": "a", "output": "b", "history": 1}', "history: expected a list of pairs"),
    (b'{"instruction": "a", "output": ', "not JSON"),
    (b'{"instruction": "a" "output": "b"}', "not JSON: Expecting ',' delimiter"),
    (b"{'instruction': 'a', 'output': 'b'}", "not JSON"),
    (b'{"instruction": "a", "output": "b"} trailing', "not JSON: Extra data"),
    (
        b'{"instruction": "a", "output": "b"}{"instruction": "c", "output": "d"}',
        "not JSON: Extra data",
    ),
    (b"just text", "not JSON"),
    (b'{"instruction": "a", "output": NaN}', "output: expected text, this is float"),
    (
        b'{"instruction": "caf\xe9", "output": "b"}',
        "not UTF-8: byte 0xe9 at column 21; is the source's `encoding` another?",
    ),
    (b'{"instruction": "a", "instruction": "b", "output": "c"}', "'instruction' occurs twice"),
    (b'{"instruction": "a\x00", "output": "b"}', "not JSON: Invalid control character"),
    (b'{"instruction": "a", "output": "nul \\u0000 inside"}', "NUL character"),
    (b'{"instruction": "a", "output": "half \\ud83d"}', "half a surrogate pair, U+D83D"),
    (b'{"instruction": "' + b"x" * (10 << 20) + b'", "output": "b"}', "a line of 104857"),
    (b"[" * 100_000, "not JSON"),
    (b"[1, 2, 3]", "a row is an object, this is list"),
    (b'"a string"', "a row is an object, this is str"),
    (b"null", "a row is an object, this is NoneType"),
    (b"{}", "unknown format: the row has the keys (none)"),
    (row(foo=1, bar=2), "unknown format: the row has the keys foo, bar"),
    (row(instruction="a", input=""), "unknown format"),
    (row(instruction="a", output=""), "output: empty"),
    (row(instruction="a", output="  \n"), "output: empty"),
    (row(instruction="a", output=5), "output: expected text, this is int"),
    (row(instruction=["a"], output="b"), "instruction: expected text, this is list"),
    (row(instruction="a", output=None), "output: missing"),
    (row(messages=[]), "messages: expected a list of turns"),
    (row(messages="hello"), "messages: expected a list of turns"),
    (turns(("user", "a"), ("wizard", "b")), "messages[1]: unknown role 'wizard'"),
    (turns(("user", "a")), "no assistant turn to train on"),
    (
        turns(("system", "a"), ("system", "b"), ("user", "c"), ("assistant", "d")),
        "more than one system turn",
    ),
    (turns(("user", None), ("assistant", "b")), "messages[0]: no content and no tool calls"),
    (row(messages=["a", "b"]), "messages[0]: a turn is an object"),
    (row(messages=[{"role": "user", "content": [{"type": "image"}]}]), "only parts of type text"),
    (
        row(messages=[{"role": "assistant", "content": "a", "weight": -1}]),
        "weight is a number of 0 to 1000, this is -1",
    ),
    (
        row(messages=[{"role": "assistant", "content": "a", "train": "yes"}]),
        "train is true or false",
    ),
    (
        row(messages=[{"role": "assistant", "tool_calls": [{"arguments": {}}]}]),
        "a tool call without a name",
    ),
    (row(instruction="a", output="b", history=["x"]), "history: each entry is a pair"),
    (
        row(conversations=[{"from": "human", "value": "a"}, {"from": "gpt"}]),
        "conversations[1]: no content and no tool calls",
    ),
    (row(prompt="a", completion="b", tools="not a list"), "tools: expected a list"),
    (
        calling({"half": "\ud83d"}),
        "half a surrogate pair, U+D83D in messages[1]: the arguments of a tool call",
    ),
    (calling({"nul\0": 1}), "NUL character in messages[1]: the arguments of a tool call"),
    (calling({"at": "\ufdd0"}), "noncharacter U+FDD0 in messages[1]: the arguments of a tool call"),
    (
        row(prompt="a", completion="b", tools=[{"name": "f", "description": "\udc00"}]),
        "U+DC00 in tools",
    ),
    (row(prompt="a", completion="b\ufdd3"), "noncharacter U+FDD3 in assistant"),
    (
        row(messages=[{"role": "user", "name": "\ud800", "content": "a"}, ANSWER]),
        "half a surrogate pair, U+D800 in name",
    ),
    (
        row(messages=[{"role": "user", "content": "a"}, {**ANSWER, "weight": 10**400}]),
        "this is a number of many digits",
    ),
    (
        row(messages=[{"role": "user", "content": "a"}, {**ANSWER, "weight": 1e39}]),
        "weight is a number of 0 to 1000",
    ),
    (b'{"messages": [{"role": "assistant", "content": "a", "weight": 1e999}]}', "this is inf"),
    (
        b'{"messages": [{"role": "assistant", "content": "a", "weight": ' + b"9" * 5000 + b"}]}",
        "not JSON: Exceeds the limit",
    ),
    (b'{"\\ud83d": 1}', "unknown format: the row has the keys \\ud83d"),
    (
        row(messages=[{"role": "user", "content": "a"}, ANSWER] * 600),
        "1200 turns, the limit is 1024",
    ),
    (row(messages="[" * 5000), "messages: expected a list of turns"),
]


@pytest.fixture(scope="module")
def dirty(tmp_path_factory):
    """A file of good rows, blank lines and all bad rows, and the reason by line of the bad rows."""
    path = tmp_path_factory.mktemp("dirty") / "rows.jsonl"
    lines = [row(instruction=f"Say {i}", input="", output=f"It is {i}.") for i in range(NUM_GOOD)]
    at = {}
    for number, (bad, reason) in enumerate(BAD):
        place = 150 * (number + 1) + number
        lines.insert(place, bad)
        at[place + 1] = reason
    lines += [b"", b"   ", b""]
    path.write_bytes(b"\n".join(lines))
    return path, at


def recipe_for(base, path, **data):
    section = {"sources": [str(path)], "row_tokens": 256, **data}
    return parse_recipe({"name": "t", "model": {"base": base}, "data": section})


def test_all_good_rows_stay_and_every_bad_row_is_listed(ray_cluster, pocket_base, store, dirty):
    path, at = dirty
    assert len(BAD) >= 30
    prepared = prepare(recipe_for(pocket_base, path), store, SILENT)
    counts = prepared.counts
    assert counts["train"] + counts["heldout"] == NUM_GOOD
    assert counts["rejected"] == len(BAD) and counts["read"] == NUM_GOOD + len(BAD)
    listed = [
        json.loads(line)
        for line in (store.local_dir(prepared.ref) / "rejects.jsonl").read_text().splitlines()
    ]
    by_origin = {line["origin"]: line for line in listed}
    assert by_origin.keys() == {f"rows.jsonl:{line}" for line in at}
    for line, reason in at.items():
        assert reason in by_origin[f"rows.jsonl:{line}"]["reason"]
        assert by_origin[f"rows.jsonl:{line}"]["row"]


def test_too_many_bad_rows_stop_the_stage_with_their_reasons(
    ray_cluster, pocket_base, store, dirty
):
    path, _ = dirty
    with pytest.raises(
        UserError,
        match=rf"{len(BAD)} of {NUM_GOOD + len(BAD)} rows cannot be used: "
        r".*data.max_rejects_share=0.001",
    ) as error:
        prepare(recipe_for(pocket_base, path, max_rejects_share=0.001), store, SILENT)
    assert "x not JSON: Expecting value (first at rows.jsonl:453); " in str(error.value)
    assert "\n" not in str(error.value)
    assert not store.list("prepared")


def test_an_existing_dataset_is_refused_under_a_stricter_limit(
    ray_cluster, pocket_base, store, dirty
):
    path, _ = dirty
    made = prepare(recipe_for(pocket_base, path), store, SILENT)
    with pytest.raises(
        UserError, match=r"rows cannot be used: .*\(first at rows.jsonl:453\).*=0.001"
    ):
        prepare(recipe_for(pocket_base, path, max_rejects_share=0.001), store, SILENT)
    assert prepare(recipe_for(pocket_base, path), store, SILENT) == made


@pytest.fixture
def few_bad(tmp_path):
    """A file with 20 good rows and 2 bad ones."""
    lines = [row(instruction=f"Say {i}", output=f"It is {i}.") for i in range(20)]
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join([*lines, b"bad", b"worse"]))
    return tmp_path / "rows.jsonl"


def test_every_lookup_of_a_dataset_applies_the_current_limit(pocket_base, store, few_bad, serially):
    tolerant = recipe_for(pocket_base, few_bad, max_rejects_share=0.2, heldout_share=0.2)
    strict = recipe_for(pocket_base, few_bad, max_rejects_share=0.05, heldout_share=0.2)
    made = prepare(tolerant, store, SILENT, serially)
    runner = Runner(store, SILENT)
    assert runner.find(prepare_step(Inputs(tolerant), serially)) == made
    for look in (runner.find, runner.require, runner.run):
        with pytest.raises(
            UserError, match=r"2 of 22 rows cannot be used: .*rows.jsonl:21.*max_rejects_share=0.05"
        ):
            look(prepare_step(Inputs(strict), serially))


@pytest.mark.parametrize(
    ("more", "settings", "reason", "fates"),
    [
        ([], {"max_rejects_share": 0.05}, "rows cannot be used", {"rejected": 2}),
        (
            ["Say 3"],
            {"max_rejects_share": 0.2},
            "1 training rows ask questions that are held out",
            {"rejected": 2, "leaked": 1},
        ),
        (
            [],
            {"max_rejects_share": 0.2, "keep": ["answer_chars > 999"]},
            "no row left",
            {"rejected": 2, "filtered": 20},
        ),
    ],
)
def test_a_failing_stage_saves_its_rejects_and_names_the_file(
    pocket_base, store, tmp_path, few_bad, serially, more, settings, reason, fates
):
    recipe = recipe_for(pocket_base, few_bad, heldout_share=0, **settings)
    if more:
        (tmp_path / "asked.jsonl").write_bytes(
            b"\n".join(row(instruction=instruction, output="x") for instruction in more)
        )
        sources = [str(few_bad), {"path": str(tmp_path / "asked.jsonl"), "split": "heldout"}]
        recipe = recipe_for(
            pocket_base, few_bad, **{"sources": sources, "heldout_share": 0, **settings}
        )
    for _ in range(2):  # the second time they are there already
        with pytest.raises(
            UserError, match=f"{reason}.*; all rejects: .*/rejects/.*/rejects.jsonl$"
        ) as error:
            prepare(recipe, store, SILENT, serially)
    path = Path(str(error.value).rpartition("rejects: ")[2])
    rejects = [json.loads(line) for line in path.read_text().splitlines()]
    assert Counter(line["fate"] for line in rejects) == fates and "\n" not in str(error.value)
    assert {"rows.jsonl:21", "rows.jsonl:22"} <= {line["origin"] for line in rejects}
    assert not store.list("prepared")


def test_a_row_of_an_array_that_does_not_fit_costs_that_row(pocket_base, store, tmp_path, serially):
    good = [{"instruction": f"Say {i}", "output": f"It is {i}."} for i in range(50)]
    good[20]["output"] = ""
    (tmp_path / "rows.json").write_text(json.dumps(good, indent=1))
    path = tmp_path / "rows.json"
    recipe = recipe_for(pocket_base, path, max_rejects_share=0.1, heldout_share=0.2)
    prepared = prepare(recipe, store, SILENT, serially)
    assert prepared.counts["train"] + prepared.counts["heldout"] == 49
    assert prepared.counts["rejected"] == 1
    (line,) = (store.local_dir(prepared.ref) / "rejects.jsonl").read_text().splitlines()
    assert json.loads(line)["origin"] == "rows.json:82"


def test_an_array_that_does_not_parse_is_refused_by_the_stage(
    ray_cluster, pocket_base, store, tmp_path
):
    good = [json.dumps({"instruction": f"Say {i}", "output": f"It is {i}."}) for i in range(50)]
    good[20] = good[20][:-1]
    (tmp_path / "rows.json").write_text("[\n" + ",\n".join(good) + "\n]\n")
    recipe = recipe_for(pocket_base, tmp_path / "rows.json", max_rejects_share=1)
    with pytest.raises(
        UserError, match=r"rows.json:23: element 21 of the JSON array, which begins in line 22: "
    ):
        prepare(recipe, store, SILENT)
    assert not store.list("prepared")
