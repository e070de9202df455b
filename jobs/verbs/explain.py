"""`loraforge explain`: the keys of a recipe, in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.text import Text

    from pipelines.config.recipe_reference import Key, SectionReference


def explain(
    topic: Annotated[
        str | None,
        typer.Argument(metavar="SECTION[.KEY]", help="a section or a key; else every section"),
    ] = None,
) -> None:
    """Show the keys of a recipe with type, default, bounds and meaning."""
    from rich.console import Console

    from pipelines.config.recipe_reference import sections

    console, listed = Console(highlight=False), sections()
    if topic is None:
        for section in listed:
            console.print(_section_line(section), soft_wrap=not console.is_terminal)
        console.print("\nloraforge explain SECTION shows the keys of a section", markup=False)
        return
    chosen = [s for s in listed if topic in (s.name, s.name.partition(".")[0])]
    keys = [key for section in listed for key in section.keys if key.name == topic]
    if not chosen and not keys:
        raise _unknown(topic, listed)
    lines = [_key_text(key) for key in keys]
    for section in chosen:
        lines += [_section_line(section), *map(_key_text, section.keys)]
    for line in lines:
        console.print(line, soft_wrap=not console.is_terminal)


def _unknown(topic: str, listed: list[SectionReference]) -> Exception:
    """The error for a topic that is neither section nor key, with the nearest name."""
    import difflib

    from pipelines.config.peers import translation
    from pipelines.core.errors import UserError

    last = topic.rsplit(".", 1)[-1]
    names = [section.name for section in listed if section.name]
    keys = [key.name for section in listed for key in section.keys]
    near = [key for key in keys if key.rsplit(".", 1)[-1] == last]
    near = near or difflib.get_close_matches(topic, [*names, *keys], n=1)
    near = near or difflib.get_close_matches(last, [key.rsplit(".", 1)[-1] for key in keys], n=1)
    hint = f"did you mean {near[0]}?" if near else f"sections: {', '.join(names)}"
    return UserError(f"no section or key is named {topic}; {translation(last, None) or hint}")


def _section_line(section: SectionReference) -> Text:
    from rich.text import Text

    return Text.assemble((section.name or "(no section)", "bold"), f": {section.description}")


def _key_text(key: Key) -> Text:
    """A key with its type, bounds and default on one line and its meaning on the next."""
    from rich.text import Text

    facts = [key.type.replace("`", ""), key.bounds]
    facts.append(f"default {key.default}" if key.default else "required")
    line = "; ".join(fact for fact in facts if fact)
    return Text.assemble(("\n" + key.name, "bold cyan"), f"  {line}\n    {key.description}")
