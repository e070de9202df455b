"""Recipes: what they accept, what they refuse with which words, and that equal recipes have equal digests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from pipelines.adapter_format.folder import check_adapter
from pipelines.adapter_format.limits import REGISTRY_MAX_RANK, REGISTRY_MAX_SCALE
from pipelines.config.errors import valid_keys
from pipelines.config.load import load_recipe
from pipelines.config.recipe import Recipe, parse_recipe
from pipelines.core.errors import UserError

MINIMAL = """
name: tiny
model: {base: org/base}
data: {sources: [rows.jsonl]}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "tiny.yaml").write_text(MINIMAL)
    return tmp_path / "recipes" / "tiny.yaml"


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as met:
        load_recipe(path, overrides)
    said = str(met.value)
    assert "\n" not in said and said.startswith(str(path))
    return said.removeprefix(" ".join([str(path), *(f"-s {o}" for o in overrides)])).removeprefix(
        ": "
    )


# -- what is accepted --------------------------------------------------------------------------------------------


def test_three_keys_are_enough_and_the_rest_has_defaults(path: Path) -> None:
    recipe = load_recipe(path)
    assert (recipe.name, recipe.model.base, recipe.registry.model) == ("tiny", "org/base", "tiny")
    assert recipe.data.sources[0].path == str(path.parent / "rows.jsonl")
    assert parse_recipe(yaml.safe_load(recipe.to_yaml())) == recipe, (
        "the resolved copy is a recipe of its own"
    )


def _leaves(section: BaseModel, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in type(section).model_fields:
        value = getattr(section, key)
        found |= (
            _leaves(value, f"{prefix}{key}.")
            if isinstance(value, BaseModel)
            else {f"{prefix}{key}": value}
        )
    return found


def test_every_key_can_be_given_on_the_command_line_as_the_resolved_recipe_shows_it(
    path: Path,
) -> None:
    recipe = load_recipe(path)
    resolved = yaml.safe_load(recipe.to_yaml())
    leaves = _leaves(recipe)
    assert set(leaves) < set(valid_keys(Recipe)) and len(leaves) > 40
    for key in leaves:
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
def test_an_override_is_yaml_behind_a_dotted_key(path: Path, override: str, read: Any) -> None:
    assert read(load_recipe(path, [override]))


def test_overrides_change_only_their_key_and_the_last_one_counts(path: Path) -> None:
    path.write_text(MINIMAL + "lora: {r: 4, dropout: 0.1}\n")
    recipe = load_recipe(path, ["lora.r=16", "lora.alpha=3", "lora.r=32"])
    assert (recipe.lora.r, recipe.lora.alpha, recipe.lora.dropout) == (32, 3, 0.1)
    assert (
        load_recipe(path, ["data.sources=a.jsonl"]).data.heldout_share
        == load_recipe(path).data.heldout_share
    )


# -- paths -------------------------------------------------------------------------------------------------------


def test_paths_are_relative_to_the_recipe_and_those_of_overrides_to_the_working_directory(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    path.write_text(
        "name: tiny\nmodel: {base: ../base}\ndata: {sources: [{path: a.jsonl}, ../b.jsonl, ~/c, /d]}\n"
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


def test_a_name_with_a_slash_is_a_hub_id_unless_that_folder_is_there(path: Path) -> None:
    assert load_recipe(path).model.base == "org/base"
    (path.parent / "org" / "base").mkdir(parents=True)
    assert load_recipe(path).model.base == str(path.parent / "org" / "base")


# -- digests -----------------------------------------------------------------------------------------------------


def test_equal_recipes_have_one_digest_however_they_are_written(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    other = path.with_name("other.yaml")
    other.write_text(
        f"data:\n  heldout_share: {recipe.data.heldout_share}\n  sources:\n    - path: rows.jsonl\n"
        "model:\n  base: 'org/base' # said otherwise\nname: tiny\nregistry:\n  model: tiny\n"
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


# -- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("lora.rr=8", "lora.rr: unknown key; did you mean lora.r?"),
        ("lora.rank=8", "lora.rank: unknown key; did you mean lora.r?"),
        ("train.epoch=1", "train.epoch: unknown key; did you mean train.epochs?"),
        ("trian.epochs=1", "trian: unknown key; did you mean train?"),
        ("lr=1", "lr: unknown key; did you mean train.lr?"),
        ("train.port=1", "train.port: unknown key; did you mean serve.port?"),
        (
            "data.sources=[{path: a, formt: alpaca}]",
            "data.sources.0.formt: unknown key; did you mean data.sources.0.format?",
        ),
        ("eval.qqqqqqq=1", "eval.qqqqqqq: unknown key; valid here: max_samples, max_new_tokens, "),
        ("qqqqqqq.a=1", "qqqqqqq: unknown key; valid here: name, model, lora, data, "),
    ],
)
def test_an_unknown_key_comes_with_the_nearest_valid_one(
    path: Path, override: str, said: str
) -> None:
    assert refused(path, override).startswith(said)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "lora.r=many",
            "lora.r: Input should be a valid integer, unable to parse string as an integer (given: 'many')",
        ),
        ("lora.r=0", "lora.r: Input should be greater than or equal to 1 (given: 0)"),
        ("train.lr=.inf", "train.lr: Input should be a finite number (given: inf)"),
        ("lora=5", "lora: Expected a section of keys (given: 5)"),
        (
            "lora.targets=3",
            "lora.targets: Input should be 'qv', 'attention' or 'all-linear' or Input should be a valid list",
        ),
        ("data.sources=[]", "data.sources: List should have at least 1 item"),
        (
            "data.sources=[{path: a, format: alpca}]",
            "data.sources.0.format: Input should be 'auto', 'alpaca'",
        ),
        (
            "train.gradient_checkpointing=on",
            "train.gradient_checkpointing: Input should be 'auto', 'off', 'selective' or 'full' (given: 'on')",
        ),
        (
            "model.dtype=off",
            "model.dtype: Input should be 'auto', 'fp32', 'bf16' or 'fp16' (given: False)",
        ),
        ("name=a b", "name: String should match pattern"),
        ("train.zero=7", "train.zero: Input should be "),
    ],
)
def test_a_value_of_the_wrong_kind_is_said_with_its_key_and_what_was_given(
    path: Path, override: str, said: str
) -> None:
    assert refused(path, override).startswith(said)


def test_all_mistakes_are_said_at_once(path: Path) -> None:
    said = refused(path, "lora.rr=8", "train.lr=-1")
    assert (
        "lora.rr: unknown key" in said
        and "; train.lr: Input should be greater than 0 (given: -1)" in said
    )
    path.write_text("name: tiny\n")
    assert refused(path) == "model: Field required; data: Field required"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["train.global_batch=3", "train.micro_batch=2"],
            "train.global_batch=3 is not a multiple of train.micro_batch=2",
        ),
        (["model.quantization=nf4", "train.zero=3"], "train.zero=3 splits the base's weights"),
        (
            ["train.optimizer=adamw_8bit", "train.zero=3"],
            "by which train.optimizer=adamw_8bit finds its moments: set train.zero=0, 1 or 2, or train.optimizer=adamw",
        ),
        (
            ["train.optimizer=paged_adamw", "train.offload=optimizer"],
            "train.offload=optimizer steps in CPU memory, and train.optimizer=paged_adamw is made for the GPU's: set ",
        ),
    ],
)
def test_keys_that_contradict_each_other_are_said_with_what_to_set(
    path: Path, overrides: list[str], said: str
) -> None:
    answer = refused(path, *overrides)
    assert said in answer and "set " in answer


BEYOND = [
    "lora.dora=true",
    "lora.rank_pattern={q_proj: 2}",
    "lora.alpha_pattern={q_proj: 2}",
    "lora.modules_to_save=[x]",
]


@pytest.mark.parametrize("override", BEYOND)
@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_what_the_chosen_engine_cannot_serve_is_refused_and_else_noted(
    path: Path, override: str, engine: str
) -> None:
    key, who = (
        override.partition("=")[0],
        {"transformers": "the transformers engine", "vllm": "vLLM"}[engine],
    )
    (note,) = load_recipe(path, [override]).serving_notes()
    assert note.startswith(f"{key} trains ") and note.endswith(
        "which no engine here serves and the registry refuses: unset it"
    )
    answer = refused(path, override, f"serve.engine={engine}")
    assert (
        f"{key} trains " in answer
        and f"which {who} does not serve" in answer
        and "unset it, or serve.engine" in answer
    )


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        *(([override], f"{override.partition('=')[0]} trains ") for override in BEYOND),
        (
            ["lora.r=600", "lora.init=pissa"],
            "the adapter's rank is 1200 (twice lora.r, as PiSSA is saved) and the registry's",
        ),
        (
            ["lora.r=1", "lora.alpha=257"],
            "lora.alpha=257 at lora.r=1 scales the adapter by 257 and the registry's highest is 256",
        ),
        (["lora.r=4", "lora.alpha=520", "lora.rslora=true"], "scales the adapter by 260 "),
    ],
)
def test_what_the_registry_would_refuse_is_said_before_anything_is_made(
    path: Path, overrides: list[str], said: str
) -> None:
    with pytest.raises(UserError) as met:
        load_recipe(path, overrides).check_registers()
    assert (
        str(met.value).startswith("recipe tiny: ")
        and said in str(met.value)
        and "\n" not in str(met.value)
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


def test_a_rank_above_vllms_highest_is_refused(path: Path) -> None:
    assert "rank is 600 and vLLM's highest is 512: set lora.r lower" in refused(
        path, "lora.r=600", "serve.engine=vllm"
    )
    given = ["lora.r=300", "lora.init=pissa", "serve.engine=vllm"]
    assert "rank is 600 (twice lora.r, as PiSSA is saved) and vLLM's" in refused(path, *given)
    assert load_recipe(path, ["lora.r=600", "serve.engine=transformers"]).serving_notes() == []


def test_a_whole_model_is_no_version_and_says_how_it_is_served(path: Path) -> None:
    recipe = load_recipe(path, ["train.method=full", "lora.dora=true", "serve.engine=vllm"])
    assert "-s model.base=FOLDER" in recipe.serving_notes()[0]
    with pytest.raises(
        UserError,
        match="recipe tiny: train.method=full makes a whole model, and the registry holds adapters",
    ):
        recipe.check_registers()
    load_recipe(path).check_registers()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("lora.r", "-s lora.r: expected section.key=value, for example -s lora.r=8"),
        ("=8", "-s =8: expected section.key=value"),
        ("lora.r=[1", "-s lora.r=[1: the value is not valid YAML"),
        ("lora.r={1: 2: 3}", "the value is not valid YAML"),
    ],
)
def test_an_override_of_another_shape_is_refused(path: Path, override: str, said: str) -> None:
    with pytest.raises(UserError) as met:
        load_recipe(path, [override])
    assert said in str(met.value)


def test_an_override_below_a_value_is_refused(path: Path) -> None:
    with pytest.raises(UserError, match="-s lora.r.x=2: 'r' is not a section"):
        load_recipe(path, ["lora.r=1", "lora.r.x=2"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a recipe is a mapping of sections, this file holds nothing"),
        ("- a\n- b\n", "this file holds list"),
        ("name: [1\n", "not valid YAML: "),
        ("name: tiny\nlora: {r: 1}\nlora: {r: 2}\n", "not valid YAML: the key 'lora' stands twice"),
        ("name: tiny\nlora: {r: 1, r: 2}\n", "not valid YAML: the key 'r' stands twice"),
        (
            "!!python/object/apply:os.system ['true']\n",
            "not valid YAML: could not determine a constructor",
        ),
        ("\tname: tiny\n", "not valid YAML: "),
    ],
)
def test_a_file_that_holds_no_recipe_is_refused_with_the_place(
    path: Path, text: str, said: str
) -> None:
    path.write_text(text)
    answer = refused(path)
    assert answer.startswith(said) or said in answer
    assert "YAML" not in said or "line " in answer


def test_a_file_that_cannot_be_read_is_refused_with_its_nearest_neighbour(path: Path) -> None:
    assert refused(path.with_name("tini.yaml")) == (
        f"cannot read the recipe (No such file or directory); did you mean {path}?"
    )
    assert refused(path.parent) == "cannot read the recipe (Is a directory)"
    path.write_bytes(b"\xff\xfe\x00name")
    assert "not valid YAML" in refused(path)


@pytest.mark.parametrize(
    ("r", "alpha", "taken"), [(1024, 8, True), (1025, 8, False), (1, 256, True), (1, 256.5, False)]
)
def test_the_limits_said_of_a_recipe_are_those_of_an_adapters_files(
    r: int, alpha: float, taken: bool, tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": r, "lora_alpha": alpha})
    )
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(UserError) as met:
        check_adapter(tmp_path)
    assert ("not a whole safetensors file" in str(met.value)) == taken
    assert taken == (r <= REGISTRY_MAX_RANK and alpha / r <= REGISTRY_MAX_SCALE)
