"""Pages link to files beside docs/ as GitHub wants it; the site carries copies of those in its folder ``source``."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

OUTSIDE = re.compile(r'\]\(\.\./([^)#\s]+)')


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add what pages link to and the repository has; what it has not stays a broken link."""
    root = Path(config.config_file_path).parent
    linked = {path for page in files.documentation_pages() for path in OUTSIDE.findall(page.content_string)}
    for path in sorted(path for path in linked if (root / path).is_file()):
        files.append(File.generated(config, f'source/{path}', abs_src_path=str(root / path)))
    return files


def on_page_markdown(markdown: str, **_) -> str:
    return OUTSIDE.sub(r'](source/\1', markdown)
