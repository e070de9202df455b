"""`loraforge schema`: the printed JSON schema is the one that ships."""

from __future__ import annotations

import json

import typer
from typer.testing import CliRunner

from jobs.verbs.schema import schema
from pipelines.config.shipped import schema_path

app = typer.Typer()
app.command()(schema)


def test_the_printed_schema_is_the_one_that_editors_read() -> None:
    done = CliRunner().invoke(app, [])
    assert done.exit_code == 0 and done.stdout == schema_path().read_text()
    assert json.loads(done.stdout)["title"] == "Loraforge recipe"
