"""The configs and tools that come with the package: in ``upvit_mm/.mim``, OpenMMLab's place for them.

In a clone this folder has links to ``configs/`` and ``tools/``; a built package has copies.
"""

from __future__ import annotations

import difflib
from pathlib import Path

CONTENT = Path(__file__).parent / '.mim'
CONFIGS, TOOLS = CONTENT / 'configs', CONTENT / 'tools'


def config_path(name: str) -> str:
    """The file of a config of this package, for ``_base_`` of a config in any folder.

    mmengine evaluates ``_base_`` before all other lines, so a config asks for it in one expression::

        _base_ = __import__('upvit_mm').config_path('detection/retinanet_up-pvtv2-b0_fpn_1x_coco.py')

    Note:
        mmengine's ``package::path`` works only for the packages of a table in mmengine. It would also look for the
        types of such a config in ``package`` only.

    Args:
        name: path in ``configs/``, for example ``'detection/retinanet_up-pvtv2-b0_fpn_1x_coco.py'``.

    Returns:
        The absolute path.

    Raises:
        FileNotFoundError: there is no such config; the message has the nearest names.
    """
    if not (path := CONFIGS / name).is_file():
        known = [
            str(file.relative_to(CONFIGS)) for kind in ('py', 'json') for file in sorted(CONFIGS.rglob(f'*.{kind}'))
        ]
        near = ', '.join(difflib.get_close_matches(name, known, cutoff=0.3))
        raise FileNotFoundError(f'config {name!r} does not exist in {str(CONFIGS)!r}; near are {near or "none"}.')
    return str(path)
