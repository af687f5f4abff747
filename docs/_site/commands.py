"""A page for each program, from what its ``--help`` says."""

from __future__ import annotations

from typing import Any

import typer
from mkdocs.structure.files import File, Files
from typer.cli import get_docs_for_click


def on_files(files: Files, config: Any) -> Files:
    """Called by mkdocs when it has found all pages that are files."""
    from esm_agent.cli import app as agent
    from esm_host.cli.app import app as host

    for name, app in (("esm-host", host), ("esm-agent", agent)):
        command = typer.main.get_command(app)
        with command.make_context(name, [], resilient_parsing=True) as context:
            text = get_docs_for_click(obj=command, ctx=context, name=name)
        files.append(File.generated(config, f"commands/{name}.md", content=text))
    return files
