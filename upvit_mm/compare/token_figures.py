"""Figures of comparisons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from upvit_mm.arch.size import Grid, Size, size_text
from upvit_mm.consistency.measure import Results
from upvit_mm.consistency.metrics import METRICS
from upvit_mm.consistency.stages import common_stages
from upvit_mm.data.image_files import ImageFiles
from upvit_mm.models.layers.grid import grid_of, map_to_tokens
from upvit_mm.models.network import Network

matplotlib.use('Agg')
Bars = Mapping[str, Mapping[str, Mapping[str, Any]]]  # legend -> stage -> measures


def draw_stages(results: Results) -> Figure:
    """Figure of a comparison: one panel per measure, one bar per stage and size."""
    return _draw_panels({'': results})


def draw_contrast(results: Mapping[str, Results]) -> Figure:
    """Figure of a contrast: one row of panels per size, one panel per measure, one bar per stage and network."""
    sizes = list(next(iter(results.values())))
    return _draw_panels({size: {name: found[size] for name, found in results.items()} for size in sizes})


def draw_queries(networks: Mapping[str, Network], images: ImageFiles, size: Size, count: int = 3) -> Figure:
    """Similarity of one query token to all others at the end of each network, drawn over the picture.

    The query (a white cross) is the token that is least similar to the others in the first network, without the edges:
    part of an object, not of plain background. Colours are the same along a row; ``r`` is the correlation with the
    first network's picture.

    Args:
        networks: by title, the dense one first.
        images: pictures; the first ones are shown.
        size: ``(height, width)`` of the stretched pictures.
        count: number of pictures.
    """
    labels, indices = common_stages([network.arch for network in networks.values()])
    dense = next(iter(networks.values()))
    stride = dense.arch.strides[-1]
    shown = list(images.paths)[:count]
    shape = (len(shown), 1 + len(networks))
    figure = Figure(figsize=(2.6 * shape[1], 0.4 + 2.6 * shape[0] * size[0] / size[1]), layout='constrained')
    for row, path in zip(figure.subplots(*shape, squeeze=False), shown):
        picture = images.read([path], size)
        maps = {n: network.maps(picture, where)[-1] for (n, network), where in zip(networks.items(), indices)}
        grid = grid_of(next(iter(maps.values())))
        similar = {name: _similarities(m) for name, m in maps.items()}
        query = _query(next(iter(similar.values())), grid)
        lines = {name: matrix[query] for name, matrix in similar.items()}
        _show(row[0], picture, grid, stride, query)
        row[0].set_title(path.name[-24:], fontsize=8)
        reference = next(iter(lines.values()))
        for axes, (name, line) in zip(row[1:], lines.items()):
            _show(axes, picture, grid, stride, query, line, float(reference.min()))
            r = torch.corrcoef(torch.stack([reference, line]))[0, 1].item()
            alike = 'query dropped' if np.isnan(r) else f'r = {r:.2f}'  # a token of zeros has no similarity
            axes.set_title(name if line is reference else f'{name}, {alike}', fontsize=8)
    figure.suptitle(f'similarity to one token, {labels[-1]} at {size_text(size)}', fontsize=9)
    return figure


def _draw_panels(rows: Mapping[str, Bars]) -> Figure:
    present = {name for bars in rows.values() for stages in bars.values() for s in stages.values() for name in s}
    names = [name for name in METRICS if name in present]
    longest = max(len(bars) for bars in rows.values())
    figure = Figure(figsize=((2.2 + 0.25 * longest) * len(names), 2.8 * len(rows) + 0.6), layout='constrained')
    for line, (title, bars) in zip(figure.subplots(len(rows), len(names), squeeze=False), rows.items()):
        for axes, name in zip(line, names):
            _draw_bars(axes, bars, name)
        line[0].set_ylabel(title)
    handles, legend = line[0].get_legend_handles_labels()
    figure.legend(handles, legend, loc='outside lower center', ncols=min(len(legend), 4), frameon=False)
    return figure


def _draw_bars(axes: Axes, bars: Bars, name: str) -> None:
    labels = list(next(iter(bars.values())))
    width, lowest, highest = 0.8 / len(bars), 0.0, 1.0
    for k, (legend, stages) in enumerate(bars.items()):
        values = [stages[label].get(name, float('nan')) for label in labels]
        axes.bar(np.arange(len(labels)) + (k + 0.5) * width - 0.4, values, width, label=legend)
        finite = [value for value in values if np.isfinite(value)]
        lowest, highest = min([lowest, *finite]), max([highest, *finite])
    axes.set_ylim(max(lowest, -1.0), min(highest, 2.0))  # an R2 of -50 would make the other bars invisible
    axes.set_xticks(range(len(labels)), labels, rotation=30, fontsize=8)
    axes.set_title(METRICS[name], fontsize=9)
    axes.grid(axis='y', alpha=0.3)


def _similarities(feature_map: Tensor) -> Tensor:
    """Cosine similarities of all tokens of one image ``(1, C, H, W)``: ``(N, N)``, on the CPU."""
    directions = F.normalize(map_to_tokens(feature_map)[0].float(), dim=1)
    return (directions @ directions.T).cpu()


def _query(similarities: Tensor, grid: Grid) -> int:
    """The token of lowest mean similarity ``(N, N)``, without edges, where padding makes tokens different."""
    likeness = similarities.mean(dim=1).view(grid)
    inner = tuple(slice(1, -1) if side > 2 else slice(None) for side in grid)
    hidden = torch.ones(grid, dtype=torch.bool)
    hidden[inner] = False
    return int(likeness.masked_fill(hidden, float('inf')).argmin())


def _show(
    axes: Axes,
    picture: Tensor,
    grid: Grid,
    stride: int,
    query: int,
    similarities: Tensor | None = None,
    lowest: float = 0.0,
) -> None:
    height, width = picture.shape[-2:]
    axes.imshow(picture[0].flip(0).permute(1, 2, 0).numpy())
    if similarities is not None:
        extent = (0, grid[1] * stride, grid[0] * stride, 0)  # the last tokens may reach over the edge
        axes.imshow(similarities.view(grid).numpy(), extent=extent, alpha=0.65, vmin=lowest, vmax=1, cmap='viridis')
    y, x = divmod(query, grid[1])
    axes.plot((x + 0.5) * stride, (y + 0.5) * stride, 'x', color='white', markersize=7, markeredgewidth=2)
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
