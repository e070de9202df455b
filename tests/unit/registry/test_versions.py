"""Model versions: immutable, found by name, and checked when they are read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.core.artifacts import TemplateChoice
from pipelines.core.errors import UserError
from pipelines.core.noun_json import from_json, to_json
from pipelines.registry.registry import Registry
from pipelines.storage import Store
from tests.small_adapters import register, write_adapter


def test_a_version_outlives_its_checkpoint_and_keeps_its_lineage(
    registry: Registry, tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path / "adapter")
    weights = (adapter / "adapter_model.safetensors").read_bytes()
    lineage = {"prepared": "a" * 64, "source": "b" * 64}
    version = register(registry, adapter, lineage=lineage)
    (adapter / "adapter_model.safetensors").unlink()
    reread = registry.get(version.id)
    assert reread == version == from_json(type(version), to_json(version))
    assert reread.lineage == lineage
    folder = registry.adapter_dir(reread)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["adapter_config.json", "adapter_model.safetensors"]
    assert (folder / "adapter_model.safetensors").read_bytes() == weights


def test_a_version_keeps_every_optional_field_and_its_files_stay_relative_to_the_store(
    registry: Registry, store: Store, tmp_path: Path
) -> None:
    fields = {
        "parents": {"merged": "cat@0123456789ab"},
        "quantization": "nf4",
        "dtype": "bf16",
        "engine": "transformers",
        "row_ids_uri": f"{store.uri}/rows/ids.txt",
        "canonical_uri": f"{store.uri}/canonical",
    }
    version = register(registry, write_adapter(tmp_path / "a"), **fields)
    reread = registry.get(version.id)
    assert {name: getattr(reread, name) for name in fields} == fields
    manifest = Path(store.uri, "models", version.digest[:12], "manifest.json").read_text()
    assert str(tmp_path) not in manifest
    assert json.loads(manifest)["metadata"]["row_ids_uri"] == "rows/ids.txt"


def test_a_version_keeps_the_template_that_trained_it(
    registry: Registry, store: Store, tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path / "a")
    plain = register(registry, adapter)
    assert registry.template(plain) == TemplateChoice()
    template = TemplateChoice("{{ messages }}\r\n", "{{ tools }}", {"enable_thinking": False})
    version = register(registry, adapter, template=template)
    assert registry.template(registry.get(version.id)) == template
    assert version.template_digest == template.digest
    assert version.template_arguments == {"enable_thinking": False}
    folder = Path(store.uri, "models", version.digest[:12])
    assert (folder / "chat_template.jinja").read_bytes() == b"{{ messages }}\r\n"
    assert (folder / "additional_chat_templates" / "tool_use.jinja").read_text() == "{{ tools }}"
    # The same weights are another version under another template or other arguments.
    others = [
        TemplateChoice("{{ messages }}"),
        TemplateChoice("{{ messages }}", None, {"tone": 1}),
        TemplateChoice("{{ messages }}", None, {"tone": True}),
    ]
    ids = {register(registry, adapter, template=other).id for other in [*others, template, None]}
    assert len({*ids, version.id, plain.id}) == 5
    (folder / "chat_template.jinja").write_text("{{ bos_token }}")
    with pytest.raises(UserError, match=r"chat_template.jinja.*damaged"):
        registry.template(version)


def test_the_same_adapter_is_one_version_and_other_weights_names_or_bases_are_others(
    registry: Registry, tmp_path: Path
) -> None:
    adapter, other = write_adapter(tmp_path / "a"), write_adapter(tmp_path / "b", seed=1)
    first = register(registry, adapter)
    assert register(registry, adapter, metrics={"heldout_loss": 0.4}) == first
    ids = {
        first.id,
        register(registry, other).id,
        register(registry, adapter, base_fingerprint="e" * 64).id,
        register(registry, adapter, model="cat").id,
    }
    assert len(ids) == 4
    assert registry.models() == ["bot", "cat"]
    assert len(registry.versions("bot")) == 3 and registry.versions("bot")[0] == first


def test_a_bit_flipped_after_registration_is_detected(registry: Registry, tmp_path: Path) -> None:
    version = register(registry, write_adapter(tmp_path / "a"))
    path = registry.adapter_dir(version) / "adapter_model.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UserError, match="adapter_model.safetensors.*damaged"):
        registry.adapter_dir(version)


def test_get_understands_versions_aliases_and_bare_names(
    registry: Registry, tmp_path: Path
) -> None:
    version = register(registry, write_adapter(tmp_path / "a"))
    for unknown in (
        "bot",
        "bot:production",
        "bot@000000000000",
        "cat",
        "bot@../../etc",
        f"cat@{version.id[4:]}",
    ):
        with pytest.raises(UserError, match=r"no (such version|alias)"):
            registry.get(unknown)
    registry.promote("bot", "production", version.id, 0)
    for name in ("bot", "bot:production", version.id):
        assert registry.get(name) == version


@pytest.mark.parametrize("name", ["../bot", "", "a/b", ".hidden", "x" * 64, "bot\n"])
def test_a_name_that_could_leave_the_registrys_folder_is_refused(
    registry: Registry, tmp_path: Path, name: str
) -> None:
    with pytest.raises(UserError, match="not a model name"):
        register(registry, write_adapter(tmp_path / "a"), model=name)
    with pytest.raises(UserError, match="not a model name"):
        registry.alias(name, "production")
    with pytest.raises(UserError, match="not an? alias name"):
        registry.alias("bot", name)


@pytest.mark.parametrize(
    "content", ["", "[]", '{"metadata": {}}', "without a field", "of another version"]
)
def test_a_damaged_manifest_of_one_version_hides_no_other_model(
    registry: Registry, store: Store, tmp_path: Path, content: str
) -> None:
    damaged = register(registry, write_adapter(tmp_path / "a"))
    intact = register(registry, write_adapter(tmp_path / "b", seed=1), model="cat")
    registry.promote("cat", "production", intact.id, 0)
    path = Path(store.uri, "models", damaged.digest[:12], "manifest.json")
    manifest = json.loads(path.read_text())
    if content == "without a field":
        del manifest["metadata"]["lineage"]
        content = json.dumps(manifest)
    if content == "of another version":
        manifest["metadata"]["digest"] = intact.digest
        content = json.dumps(manifest)
    path.write_text(content)
    assert registry.models() == ["cat"] and registry.versions("bot") == []
    assert registry.get("cat") == registry.get(intact.id) == intact
    with pytest.raises(UserError, match="no such version|manifest"):
        registry.get(damaged.id)


def test_the_registry_loads_neither_torch_nor_ray() -> None:
    heavy = "{'torch', 'ray', 'peft', 'transformers'}"
    code = f"import sys, pipelines.registry.registry; print(*({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == ""
