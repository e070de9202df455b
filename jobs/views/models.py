"""Tables of registered versions and of an alias's history."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table
from rich.text import Text

from pipelines.core.errors import UserError
from pipelines.registry.registry import Registry
from pipelines.storage import Store


def versions_table(store: Store, model: str | None = None) -> Table:
    """All versions of one model or of every model, oldest first, with their figures and aliases.

    Raises UserError for a model that has no version.
    """
    registry = Registry(store)
    names = registry.models()
    if model is not None and model not in names:
        raise UserError(
            f"{model}: no such model in {store.uri}; there are {', '.join(names) or 'none yet'}"
        )
    table = Table(title=f"models in {store.uri}", title_justify="left")
    for column in ("version", "aliases", "held-out loss", "exact match", "made (UTC)"):
        table.add_column(column, no_wrap=column in ("version", "aliases"))
    for name in [model] if model else names:
        aliases = registry.aliases(name)
        for version in registry.versions(name):
            names_here = ", ".join(a.alias for a in aliases if a.version_id == version.id)
            figures = [_change(version.metrics, metric, form) for metric, form in _FIGURES]
            table.add_row(
                Text(version.id),
                Text(names_here, style="bold green"),
                *figures,
                version.created[:16].replace("T", " "),
            )
    return table


def history_table(store: Store, model: str, alias: str = "production") -> Table:
    """Every move of an alias, oldest first."""
    table = Table(title=f"{model}:{alias}", title_justify="left")
    for column in ("revision", "action", "version", "when (UTC)", "who", "why"):
        table.add_column(column, no_wrap=column == "version")
    for move in Registry(store).history(model, alias):
        row = (
            str(move.alias.revision),
            move.action,
            move.alias.version_id,
            move.created[:16].replace("T", " "),
            move.actor,
            move.reason,
        )
        table.add_row(*(Text(cell) for cell in row))
    return table


_FIGURES = (("heldout_loss", ".4f"), ("exact_match", ".1%"))


def _change(metrics: Mapping[str, float], name: str, form: str) -> str:
    """A figure of the base and of the version on the same held-out set."""
    pair = (metrics.get(f"base_{name}"), metrics.get(name))
    return " → ".join("-" if value is None else format(value, form) for value in pair)


def moved_since(store: Store, model: str, alias: str, version_id: str) -> str | None:
    """One line when the alias no longer points to the version that a decision promoted."""
    now = Registry(store).alias(model, alias)
    if now is None or now.version_id == version_id:
        return None
    return (
        f"{alias} was moved to {now.version_id} since, and nothing moved now: `loraforge promote` "
        "with this recipe, the same -s and --store, and --again moves it back"
    )
