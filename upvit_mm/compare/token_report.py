"""Reports of comparisons of tokens: tables as Markdown and CSV, everything as JSON, and figures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from upvit_mm.compare.token_table import TokenTable, stage_table
from upvit_mm.consistency.metrics import METRICS
from upvit_mm.files import write_atomically, write_text_atomically
from upvit_mm.version import __version__

EXPLAINED = {  # by the names of METRICS
    'cka': 'centred kernel alignment: linear, unbiased, over the tokens of all images',
    'cka_within': 'CKA of the tokens of one image each, so that differences between images do not count',
    'relation': 'correlation of the token-by-token cosine similarities of both networks, mean over images',
    'neighbours': 'share of the 10 nearest tokens of a token in its image, by cosine similarity, that are the same in '
    'both networks',
    'procrustes': 'how near the tokens come when one network is rotated and scaled; high for all with few tokens a '
    'channel',
    'cosine': 'cosine similarity of dense tokens with what a ridge map makes of the pruned ones; the map is fitted on '
    'the first half of the images and judged on the others',
    'r2': 'share of the variance of dense tokens that this map explains',
    'kept_error': 'relative distance to the channels of the dense network that were kept; lower is better',
}


def write_pair(folder: Path, content: dict[str, Any], figures: Mapping[str, Figure]) -> None:
    """``consistency.json``, ``consistency.md`` and figures of one network and the dense one.

    Args:
        folder: where.
        content: ``dense`` and ``pruned`` (records of the networks), ``settings``, ``results`` of ``compare``, and
            ``gate`` (``ConsistencyGate.record``) if there is one.
        figures: by the name of their ``.png`` file.
    """
    lines = ['# Token consistency', '']
    for side in ('dense', 'pruned'):
        lines += [f'{side.capitalize()}: {_described(content[side])}.', '']
    for size, stages in content['results'].items():
        lines += [f'## {size}', '', *stage_table(stages).markdown(), '']
    if content.get('gate'):
        lines += ['## Gate', '', f'{content["gate"]["verdict"]}.', '']
    lines += _end(content.get('settings'), content.get('command'), figures)
    _write(folder, 'consistency', content, lines, figures)


def write_contrast(folder: Path, content: dict[str, Any], figures: Mapping[str, Figure]) -> None:
    """``contrast.json``, ``contrast.md``, ``contrast.csv`` and pictures of networks beside one another.

    Args:
        folder: where.
        content: see ``TokenTable``.
        figures: by the name of their ``.png`` file.
    """
    found = TokenTable.of(content)
    lines = ['# Token consistency of networks beside one another', '']
    if found.dense is not None:
        lines += [f'Dense: {_described(found.dense)}.', '']
    if any(len(names) > 1 for names in found.groups.values()):
        lines += ['Mean ± standard deviation where a network was made with several seeds.', '']
    for size in found.sizes:
        for measure, title in METRICS.items():
            table = found.measure_table(measure, size)
            if table.rows:
                lines += [f'## {title}, {size}', '', *table.markdown(), '']
    if found.over is not None:
        lines += _over_lines(found)
    if found.predicted is not None:
        lines += _predicted_lines(found)
    lines += _end(found.settings, found.command, figures)
    write_text_atomically(folder / 'contrast.csv', found.sheet().csv())
    _write(folder, 'contrast', content, lines, figures)


def _over_lines(found: TokenTable) -> list[str]:
    """Differences at the last stage: a table for each size."""
    lines = []
    for size, stages in next(iter(found.over['rows'].values())).items():
        title = f'## Over {found.over["to"]}, {list(stages)[-1]}, {size}'
        lines += [title, '', *found.difference_table(size).markdown(), '']
    return [*lines, found.over['how'], '']


def _predicted_lines(found: TokenTable) -> list[str]:
    told = found.predicted
    intro = f'How measures at {told["size"]} rank the networks, against {told["ap"]} of `{told["file"]}`:'
    return ['## Does it predict AP?', '', intro, '', *found.predicted_table().markdown(), '']


def _end(settings: Mapping[str, Any] | None, command: str | None, figures: Mapping[str, Figure]) -> list[str]:
    """Explanations of the measures, settings of the measurement, and figures."""
    lines = [f'- **{METRICS[name]}**: {text}.' for name, text in EXPLAINED.items()]
    lines += [
        '',
        f'All but {METRICS["kept_error"]} are 1 for equal representations and about 0 for unrelated ones.',
        '',
    ]
    if settings:
        lines += [f'{", ".join(f"{name} {value}" for name, value in settings.items())}.', '']
    if command is not None:
        lines += ['```', command, '```', '']
    return [*lines, *(f'![{name[:-4]}]({name})' for name in figures), '']


def _write(folder: Path, name: str, content: Any, lines: Sequence[str], figures: Mapping[str, Figure]) -> None:
    for file, figure in figures.items():
        write_atomically(folder / file, lambda part, figure=figure: figure.savefig(part, format='png', dpi=110))
    write_text_atomically(folder / f'{name}.md', '\n'.join(lines))
    content = _plain({'upvit_mm_version': __version__, **content})
    write_text_atomically(folder / f'{name}.json', json.dumps(content, indent=2, allow_nan=False) + '\n')


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _described(record: Mapping[str, Any]) -> str:
    arch = record['arch']
    digest = f', sha256 {record["sha256"][:12]}...' if 'sha256' in record else ''
    return f'{arch["name"] or arch["family"]}, `{record["checkpoint"]}` in `{record["config"]}`{digest}'
