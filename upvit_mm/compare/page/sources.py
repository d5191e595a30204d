"""Read and check the files that the tools wrote."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from upvit_mm.compare.classifier_table import ClassifierRow, ClassifierTable
from upvit_mm.compare.detector_table import DetectorRow, DetectorTable
from upvit_mm.compare.evaluation import PREDICTIONS
from upvit_mm.compare.token_table import TokenTable
from upvit_mm.registry import type_name


@dataclass(frozen=True)
class Source:
    """A JSON file of a tool.

    Attributes:
        name: name of the file.
        tool: the tool that writes it.
        keys: keys that it must have.
        row_keys: keys that each of its ``rows`` must have.
    """

    name: str
    tool: str
    keys: tuple[str, ...]
    row_keys: tuple[str, ...] = ()

    def read(self, folder: str | Path) -> dict[str, Any]:
        """The content of the file in a folder, and the folder itself as ``folder``.

        Raises:
            FileNotFoundError: no such file.
            ValueError: damaged, or another file of that name.
        """
        path = existing(Path(folder, self.name), self.tool)
        try:
            content = json.loads(path.read_text(encoding='utf-8'))
            missing = [key for key in self.keys if key not in content or (key == 'rows' and not content[key])]
            missing += [f'rows.{key}' for row in content.get('rows', ()) for key in self.row_keys if key not in row]
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f'{str(path)!r} is damaged ({error}); {self.tool} writes it.') from error
        if missing:
            raise ValueError(f'{str(path)!r} lacks {missing[0]}; {self.tool} of this version writes it.')
        return {**content, 'folder': Path(folder)}


DETECTORS = Source('detectors.json', 'tools/compare_detectors.py', DetectorTable.keys(), DetectorRow.keys())
CLASSIFIERS = Source('compare.json', 'tools/compare_classifiers.py', ClassifierTable.keys(), ClassifierRow.keys())
PRUNING = Source(
    'report.json', 'tools/prune.py', ('goal', 'method', 'settings', 'checkpoint', 'sha256', 'costs', 'held_out')
)
CONSISTENCY = Source('contrast.json', 'tools/compare_consistency.py', TokenTable.keys())


def existing(path: Path, tool: str) -> Path:
    """The path, if it exists.

    Raises:
        FileNotFoundError: no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f'{str(path)!r} does not exist; {tool} writes it.')
    return path


class DetectorRuns:
    """One comparison of ``tools/compare_detectors.py``.

    Attributes:
        folder: the folder that it was read from.
        table: content of its ``detectors.json``.
        cfg: config of the first backbone's first run; the others differ in their backbone, or
            have a model of their own where whole detectors were evaluated.
        title: type of the detector.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: ``detectors.json`` is damaged.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.table = DetectorTable.of(DETECTORS.read(folder))
        config = self.predictions(self.table.rows[0]).with_name('config.py')
        self.cfg = Config.fromfile(existing(config, DETECTORS.tool))
        self.title: str = type_name(self.cfg.model.type)

    def predictions(self, row: DetectorRow) -> Path:
        """Predictions of a row's first run.

        Raises:
            FileNotFoundError: no such file.
            ValueError: ``detectors.json`` names another file, or one outside of its folder.
        """
        name = str(row.runs[0]['predictions'])
        path = self.folder / name
        if path.name != PREDICTIONS or not path.resolve().is_relative_to(self.folder.resolve()):
            raise ValueError(
                f'{str(self.folder / DETECTORS.name)!r}: runs.predictions = {name!r}: must be a {PREDICTIONS} in that '
                f'folder; run {DETECTORS.tool} again, which evaluates again what an older version has evaluated.'
            )
        return existing(path, DETECTORS.tool)


def read_runs(folders: Sequence[str | Path]) -> list[DetectorRuns]:
    """Read comparisons; if two have the same detector, their titles get the folder. See ``DetectorRuns``."""
    runs = [DetectorRuns(folder) for folder in folders]
    count = Counter(r.title for r in runs)
    for r in runs:
        if count[r.title] > 1:
            r.title = f'{r.title} in {r.folder.resolve().name}'
    return runs
