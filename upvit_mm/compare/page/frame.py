"""The frame that pages share."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from upvit_mm.openmmlab import SUPPORTED, installed_version
from upvit_mm.version import __version__

HERE = Path(__file__).parent


def page_template(name: str, folder: Path = HERE) -> Template:
    """A template of pages, which may use ``base.html`` and ``macros.html``.

    Args:
        name: name of its file.
        folder: where it is.
    """
    env = Environment(
        loader=FileSystemLoader([folder, HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return env.get_template(name)


def versions() -> dict[str, str | None]:
    """Versions of what a page was written with, by name; None = not installed."""
    found = {'python': platform.python_version(), 'upvit_mm': __version__}
    found |= {name: metadata.version(name) for name in ('torch', 'timm')}
    return found | {module: installed_version(module) for module in SUPPORTED}
