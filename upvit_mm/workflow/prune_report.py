"""The report of a pruning: widths, costs, scores and one-shot results, as Markdown and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from upvit_mm.arch import ArchSpec
from upvit_mm.files import write_atomically, write_text_atomically
from upvit_mm.pruning import KINDS, PrunePlan, prunable_dims
from upvit_mm.pruning.depth import all_blocks
from upvit_mm.pruning.importance import Scores
from upvit_mm.table import Table
from upvit_mm.workflow.rank_agreement import text_of

matplotlib.use('Agg')
DENSE_COLOUR, KEPT_COLOUR = '#c9d3de', '#1f5f99'
HeaderAndRows = tuple[tuple[str, ...], list[tuple[str, ...]]]
Costs = dict[str, dict[str, int]]


def width_rows(source: ArchSpec, target: ArchSpec) -> HeaderAndRows:
    """Header and one row per stage: ``dense -> pruned`` widths; ``a-b`` where blocks differ."""
    header = ('stage', 'depth', 'embed', 'heads', 'q, k', 'v', 'FFN hidden')
    rows = []
    for i in range(source.num_stages):
        cells = [f'{source.depths[i]} -> {target.depths[i]}', f'{source.embed_dims[i]} -> {target.embed_dims[i]}']
        for field in ('num_heads', 'qk_dims', 'v_dims', 'mlp_hidden_dims'):
            cells.append(f'{_span(getattr(source, field)[i])} -> {_span(getattr(target, field)[i])}')
        rows.append((str(i), *cells))
    return header, rows


def cost_rows(costs: Costs) -> HeaderAndRows:
    """Header and one row per count: dense, pruned, and the share that is left."""
    rows = []
    for name, dense in costs['dense'].items():
        pruned = costs['pruned'][name]
        rows.append((name, _short(dense), _short(pruned), f'{100 * pruned / dense:.1f} %'))
    return ('count', 'dense', 'pruned', 'left'), rows


def write_report(
    folder: Path,
    plan: PrunePlan,
    scores: Scores | None,
    content: dict[str, Any],
    results: HeaderAndRows | None,
    use: Sequence[str],
) -> None:
    """``report.md`` and ``widths.png``.

    Args:
        folder: work dir of the job.
        plan: kept channels and blocks.
        scores: by dim name, or None when the plan was given.
        content: content of ``report.json``.
        results: header and one row for each network; None = nothing was evaluated.
        use: lines that say how to go on.
    """
    figure = draw_widths(plan, scores)
    write_atomically(folder / 'widths.png', lambda part: figure.savefig(part, format='png', dpi=110))
    settings, arch = content['settings'], plan.source_arch
    lines = [
        f'# {arch.name or arch.family} pruned: {content["goal"]}',
        '',
        f'Dense checkpoint: `{content["checkpoint"]}` (sha256 {content["sha256"][:12]}...). Method '
        f'`{content["method"]}`, heads `{settings["head_policy"]}`, seed {settings["seed"]}.',
        '',
        *([text_of(content['agreement']), ''] if content.get('agreement') else []),
        '## Costs',
        '',
        *Table(*cost_rows(content['costs'])).markdown(),
        '',
        'Multiply-accumulates of one image, both matrix products of attention counted'
        f'{_attention(content["windows"])}; {"classifier head included" if content["classes"] else "no head"}.',
        '',
        '## Widths',
        '',
        *Table(*width_rows(plan.source_arch, plan.target_arch)).markdown(),
        '',
        *_depth_lines(plan),
        '![dense and kept widths of every block; scores of kept and removed channels](widths.png)',
        '',
        '## One-shot results',
        '',
        *_result_lines(content, results),
        '## Use',
        '',
        *use,
    ]
    write_text_atomically(folder / 'report.md', '\n'.join(lines))


def _attention(side: int) -> str:
    return f', in windows of {side}x{side} tokens but for four blocks' if side else ''


def draw_widths(plan: PrunePlan, scores: Scores | None) -> Figure:
    """Top: dense and kept width of every dim, by kind. Bottom: the scores of kept and removed channels."""
    dims = [dim for dim in prunable_dims(plan.source_arch).values() if _stays(plan, dim)]
    figure = Figure(figsize=(14, 7 if scores else 3.8), layout='constrained')
    grid = figure.subplots(2 if scores else 1, len(KINDS), squeeze=False)
    for column, kind in enumerate(KINDS):
        members = [dim for dim in dims if dim.kind == kind]
        labels = [str(d.stage) if d.block is None else f'{d.stage}.{d.block}' for d in members]
        axes, places = grid[0, column], np.arange(len(members))
        axes.bar(places, [d.size for d in members], color=DENSE_COLOUR, label='dense')
        axes.bar(places, [len(plan.kept[d.name]) for d in members], color=KEPT_COLOUR, width=0.5, label='kept')
        axes.set_title({'embed': 'embedding', 'qk': 'q, k', 'v': 'v', 'mlp_hidden': 'FFN hidden'}[kind])
        axes.set_ylabel('channels')
        axes.legend(frameon=False)
        _label(axes, places, labels)
        if scores:
            _draw_scores(grid[1, column], plan, scores, members)
            _label(grid[1, column], places, labels)
    return figure


def _draw_scores(axes: Axes, plan: PrunePlan, scores: Scores, members: Sequence) -> None:
    positive = [scores[dim.name][scores[dim.name] > 0] for dim in members]
    floor = min((float(values.min()) for values in positive if len(values)), default=1e-12)
    for place, dim in enumerate(members):
        kept = np.isin(np.arange(dim.size), plan.kept[dim.name].numpy())
        values = np.maximum(scores[dim.name].numpy(), floor)
        spread = np.linspace(-0.3, 0.3, dim.size)
        for mask, colour in ((kept, KEPT_COLOUR), (~kept, '#c0392b')):
            axes.plot(place + spread[mask], values[mask], '.', color=colour, markersize=2)
    axes.set_yscale('log')
    axes.set_ylabel('score (blue: kept, red: removed)')


def _label(axes: Axes, places: np.ndarray, labels: Sequence[str]) -> None:
    every = max(1, len(labels) // 12)
    axes.set_xticks(places[::every], labels[::every])
    axes.set_xlabel('stage' if all('.' not in label for label in labels) else 'stage.block')


def _stays(plan: PrunePlan, dim) -> bool:
    if dim.block is None:
        return True
    return dim.block in {pair[dim.kind == 'mlp_hidden'] for pair in plan.kept_blocks[dim.stage]}


def _depth_lines(plan: PrunePlan) -> list[str]:
    lines = []
    for i, (pairs, depth) in enumerate(zip(plan.kept_blocks, plan.source_arch.depths)):
        if pairs != all_blocks(depth):
            kept = ', '.join(f'{attn}' if attn == mlp else f'{attn}/{mlp}' for attn, mlp in pairs)
            lines += [f'Stage {i} keeps of its {depth} blocks (attention/FFN where they differ): {kept}.', '']
    return lines


def _result_lines(content: dict[str, Any], results: HeaderAndRows | None) -> list[str]:
    if results is None:
        return ['Not judged (`--eval-images 0`).', '']
    count = content['images']
    on = 'the whole test set' if count is None else f'{count} held-out images'
    return [*Table(*results).markdown(), '', f'On {on}; nothing was fine-tuned.', '']


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f'{low}-{high}'


def _short(value: int) -> str:
    for unit, size in (('G', 1e9), ('M', 1e6), ('K', 1e3)):
        if value >= size:
            return f'{value / size:.3f} {unit}'
    return str(value)
