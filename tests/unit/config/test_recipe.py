"""Recipes: how they are written and overridden, and which of them can be served and registered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from pipelines.config.errors import valid_keys
from pipelines.config.load import load_recipe
from pipelines.config.recipe import Recipe, parse_recipe
from pipelines.core.errors import UserError

Refusal = Callable[..., str]

# -- values and overrides -------------------------------------------------------------------------


def test_three_keys_are_enough_because_all_others_have_defaults(path: Path) -> None:
    recipe = load_recipe(path)
    assert (recipe.name, recipe.model.base, recipe.registry.model) == ("tiny", "org/base", "tiny")
    assert recipe.data.sources[0].path == str(path.parent / "rows.jsonl")
    assert parse_recipe(yaml.safe_load(recipe.to_yaml())) == recipe, (
        "the resolved copy is a recipe of its own"
    )


def values_of(section: BaseModel, prefix: str = "") -> dict[str, Any]:
    """The value of every dotted key."""
    values: dict[str, Any] = {}
    for key in type(section).model_fields:
        value = getattr(section, key)
        if isinstance(value, BaseModel):
            values |= values_of(value, f"{prefix}{key}.")
        else:
            values[f"{prefix}{key}"] = value
    return values


def test_every_key_can_be_given_on_the_command_line_as_the_resolved_recipe_shows_it(
    path: Path,
) -> None:
    recipe = load_recipe(path)
    resolved = yaml.safe_load(recipe.to_yaml())
    keys = values_of(recipe)
    assert set(keys) < set(valid_keys(Recipe)) and len(keys) > 40
    for key in keys:
        value = resolved
        for part in key.split("."):
            value = value[part]
        text = yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()
        assert load_recipe(path, [f"{key}={text}"]) == recipe, key


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("train.lr=3e-4", lambda r: r.train.lr == 3e-4),
        ("train.lr=0.001", lambda r: r.train.lr == 1e-3),
        ("lora.targets=[q_proj, v_proj]", lambda r: r.lora.targets == ["q_proj", "v_proj"]),
        ("lora.targets=qv", lambda r: r.lora.targets == "qv"),
        ("lora.rslora=true", lambda r: r.lora.rslora is True),
        ("train.max_steps=null", lambda r: r.train.max_steps is None),
        ("train.max_steps=", lambda r: r.train.max_steps is None),
        ("model.revision='1e5'", lambda r: r.model.revision == "1e5"),
        ("model.base=org/a=b", lambda r: r.model.base == "org/a=b"),
        ("train.gradient_checkpointing=off", lambda r: r.train.gradient_checkpointing == "off"),
        ("train.fused=on", lambda r: r.train.fused == "on"),
        ("train.fused=off", lambda r: r.train.fused == "off"),
        ("train.fused='off'", lambda r: r.train.fused == "off"),
        ("train={fused: On, lr: 1.0}", lambda r: (r.train.fused, r.train.lr) == ("on", 1)),
        ("lora={r: 4, alpha: 8}", lambda r: (r.lora.r, r.lora.alpha) == (4, 8)),
    ],
)
def test_an_override_is_a_dotted_key_and_a_yaml_value(path: Path, override: str, read: Any) -> None:
    assert read(load_recipe(path, [override]))


def test_overrides_change_only_their_key_and_the_last_one_counts(path: Path) -> None:
    path.write_text(path.read_text() + "lora: {r: 4, dropout: 0.1}\n")
    recipe = load_recipe(path, ["lora.r=16", "lora.alpha=3", "lora.r=32"])
    assert (recipe.lora.r, recipe.lora.alpha, recipe.lora.dropout) == (32, 3, 0.1)
    assert (
        load_recipe(path, ["data.sources=a.jsonl"]).data.heldout_share
        == load_recipe(path).data.heldout_share
    )


# -- paths ----------------------------------------------------------------------------------------


def test_paths_in_a_file_are_relative_to_it_and_paths_in_overrides_to_the_working_directory(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    path.write_text(
        "name: tiny\nmodel: {base: ../base}\n"
        "data: {sources: [{path: a.jsonl}, ../b.jsonl, ~/c, /d]}\n"
    )
    recipe = load_recipe(path)
    assert recipe.model.base == str(tmp_path / "base")
    wanted = [
        tmp_path / "recipes" / "a.jsonl",
        tmp_path / "b.jsonl",
        tmp_path / "home" / "c",
        Path("/d"),
    ]
    assert [source.path for source in recipe.data.sources] == [str(p) for p in wanted]
    recipe = load_recipe(path, ["model.base=./base", "data.sources=[a.jsonl, {path: ../b.jsonl}]"])
    assert recipe.model.base == str(tmp_path / "here" / "base")
    wanted = [tmp_path / "here" / "a.jsonl", tmp_path / "b.jsonl"]
    assert [source.path for source in recipe.data.sources] == [str(p) for p in wanted]
    assert (
        load_recipe(path, ["data.sources=s3://b/a.jsonl"]).data.sources[0].path == "s3://b/a.jsonl"
    )


def test_a_name_with_a_slash_is_a_hub_id_unless_such_a_folder_exists(path: Path) -> None:
    assert load_recipe(path).model.base == "org/base"
    (path.parent / "org" / "base").mkdir(parents=True)
    assert load_recipe(path).model.base == str(path.parent / "org" / "base")


# -- digests --------------------------------------------------------------------------------------


def test_equal_recipes_have_one_digest_however_they_are_written(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    other = path.with_name("other.yaml")
    other.write_text(
        f"data:\n  heldout_share: {recipe.data.heldout_share}\n  sources:\n    - path: rows.jsonl\n"
        "model:\n  base: 'org/base' # other words\nname: tiny\nregistry:\n  model: tiny\n"
    )
    assert load_recipe(other) == recipe and load_recipe(other).digest == recipe.digest
    assert (
        load_recipe(path, ["train.lr=3e-4"]).digest == load_recipe(path, ["train.lr=0.0003"]).digest
    )
    changed = [
        load_recipe(path, [o]).digest
        for o in ("lora.r=4", "train.seed=1", "serve.port=1", "gate.margin=0.5")
    ]
    assert len({recipe.digest, *changed}) == 5
    assert len(recipe.digest) == 64


def test_a_recipe_cannot_be_changed(path: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_recipe(path).train.lr = 1.0  # type: ignore[misc]


# -- serving and registering ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (
            ["train.global_batch=3", "train.micro_batch=2"],
            "train.global_batch=3 is not a multiple of train.micro_batch=2",
        ),
        (["model.quantization=nf4", "train.zero=3"], "train.zero=3 splits the base's weights"),
        (
            ["train.optimizer=adamw_8bit", "train.zero=3"],
            (
                "by which train.optimizer=adamw_8bit finds its moments: "
                "set train.zero=0, 1 or 2, or train.optimizer=adamw"
            ),
        ),
        (
            ["train.optimizer=paged_adamw", "train.offload=optimizer"],
            (
                "train.offload=optimizer steps in CPU memory, and train.optimizer=paged_adamw "
                "is made for the GPU's: set "
            ),
        ),
    ],
)
def test_keys_that_contradict_each_other_are_refused_with_a_value_to_set(
    path: Path, refusal: Refusal, overrides: list[str], reason: str
) -> None:
    answer = refusal(path, *overrides)
    assert reason in answer and "set " in answer


UNSERVABLE = [
    "lora.dora=true",
    "lora.rank_pattern={q_proj: 2}",
    "lora.alpha_pattern={q_proj: 2}",
    "lora.modules_to_save=[x]",
]


@pytest.mark.parametrize("override", UNSERVABLE)
@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_an_adapter_that_the_chosen_engine_cannot_serve_is_refused_and_without_an_engine_noted(
    path: Path, refusal: Refusal, override: str, engine: str
) -> None:
    key = override.partition("=")[0]
    name = {"transformers": "the transformers engine", "vllm": "vLLM"}[engine]
    (note,) = load_recipe(path, [override]).serving_notes()
    assert note.startswith(f"{key} trains ") and note.endswith(
        "which no engine here serves and the registry refuses: unset it"
    )
    answer = refusal(path, override, f"serve.engine={engine}")
    assert (
        f"{key} trains " in answer
        and f"which {name} does not serve" in answer
        and "unset it, or serve.engine" in answer
    )


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        *(([override], f"{override.partition('=')[0]} trains ") for override in UNSERVABLE),
        (
            ["lora.r=600", "lora.init=pissa"],
            "the adapter's rank is 1200 (twice lora.r, as PiSSA is saved) and the registry's",
        ),
        (
            ["lora.r=1", "lora.alpha=257"],
            (
                "lora.alpha=257 at lora.r=1 scales the adapter by 257 and the registry's highest "
                "is 256"
            ),
        ),
        (["lora.r=4", "lora.alpha=520", "lora.rslora=true"], "scales the adapter by 260 "),
    ],
)
def test_an_adapter_that_the_registry_would_refuse_is_refused_before_any_work(
    path: Path, overrides: list[str], reason: str
) -> None:
    with pytest.raises(UserError) as error:
        load_recipe(path, overrides).check_registers()
    assert (
        str(error.value).startswith("recipe tiny: ")
        and reason in str(error.value)
        and "\n" not in str(error.value)
    )
    load_recipe(path, ["lora.r=512", "lora.init=pissa", "lora.alpha=512"]).check_registers()


@pytest.mark.parametrize(
    ("overrides", "least"),
    [
        (["lora.r=1"], 1),
        (["lora.r=12"], 16),
        (["lora.r=300"], 320),
        (["lora.r=20", "lora.init=pissa"], 64),
    ],
)
def test_vllm_takes_only_some_ranks_as_its_highest(
    path: Path, overrides: list[str], least: int
) -> None:
    recipe = load_recipe(path, [*overrides, "serve.engine=vllm", "lora.rslora=true"])
    assert recipe.serving_notes() == [f"serve.engine=vllm: start vLLM with --max-lora-rank {least}"]


def test_a_rank_above_vllms_highest_is_refused(path: Path, refusal: Refusal) -> None:
    assert "rank is 600 and vLLM's highest is 512: set lora.r lower" in refusal(
        path, "lora.r=600", "serve.engine=vllm"
    )
    given = ["lora.r=300", "lora.init=pissa", "serve.engine=vllm"]
    assert "rank is 600 (twice lora.r, as PiSSA is saved) and vLLM's" in refusal(path, *given)
    assert load_recipe(path, ["lora.r=600", "serve.engine=transformers"]).serving_notes() == []


def test_a_fully_trained_model_cannot_be_registered_and_the_note_explains_how_to_serve_it(
    path: Path,
) -> None:
    recipe = load_recipe(path, ["train.method=full", "lora.dora=true", "serve.engine=vllm"])
    assert "-s model.base=FOLDER" in recipe.serving_notes()[0]
    with pytest.raises(
        UserError,
        match="recipe tiny: train.method=full makes a whole model, and the registry holds adapters",
    ):
        recipe.check_registers()
    load_recipe(path).check_registers()
