"""What a network costs, as a polynomial in its prunable widths.

Every module costs a number times one or two widths, so a cost is a list of terms. They work for any input size and any
windows of attention, and show directly what one channel of a dim costs.

A multiply-accumulate (MAC) is counted for every weight used and for both matrix products of attention; norms,
activations, softmax and resizing of positions are not counted, as usual in the field.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from upvit_mm.arch import ArchSpec
from upvit_mm.arch.size import GLOBAL, Size, Windows
from upvit_mm.pruning.dims import prunable_dims, table_of
from upvit_mm.pruning.table import Term, block_name, stage_name


def widths_of(arch: ArchSpec) -> dict[str, int]:
    """Width by dim name."""
    return {name: dim.size for name, dim in prunable_dims(arch).items()}


class Cost(Protocol):
    """What a module costs: a ``Term``, or a ``TimedTerm`` of ``latency.py``.

    Attributes:
        dims: names of the dims whose widths decide it.
    """

    dims: tuple[str, ...]

    def cost(self, widths: Mapping[str, int]) -> int:
        """The cost at these widths, by dim name."""


def total(terms: Iterable[Cost], widths: Mapping[str, int]) -> int:
    """The cost of a network of these widths."""
    return sum(term.cost(widths) for term in terms)


def count_macs(
    arch: ArchSpec,
    size: Size = (224, 224),
    num_classes: int = 0,
    windows: Windows = GLOBAL,
    used: Sequence[int] | None = None,
) -> int:
    """Multiply-accumulates of one image; see ``mac_terms``."""
    return total(mac_terms(arch, size, num_classes, windows, used), widths_of(arch))


def count_params(arch: ArchSpec, num_classes: int = 0) -> int:
    """Parameters of the backbone, and of its linear head when ``num_classes`` is given."""
    return total(param_terms(arch, num_classes), widths_of(arch))


def mac_terms(
    arch: ArchSpec,
    size: Size,
    num_classes: int = 0,
    windows: Windows = GLOBAL,
    used: Sequence[int] | None = None,
) -> list[Term]:
    """Multiply-accumulates of one image.

    Args:
        arch: the network.
        size: ``(height, width)`` of the image in pixels.
        num_classes: outputs of the classifier's head; 0 counts the backbone alone.
        windows: where blocks attend within windows.
        used: for each stage the number of its blocks that run, see ``blocks_in_use`` of a backbone; None = all.

    Raises:
        ValueError: an image below the largest stride, or windows in a network that has none.
    """
    smallest = arch.strides[-1]
    if min(size) < smallest:
        raise ValueError(f'size = {size[0]}x{size[1]}: both sides need {smallest} pixels or more.')
    if windows and not arch.kind.allows_windows:
        raise ValueError(f'window_size = {windows.size}: {arch.family} has spatial reduction instead of windows.')
    terms, table = [], table_of(arch)
    prefix, grid = arch.num_prefix_tokens, size
    for i, depth in enumerate(arch.depths):
        running = depth if used is None else used[i]
        if not running:
            continue
        kernel, stride = arch.patch_kernels[i], arch.patch_strides[i]
        grid = (-(-grid[0] // stride), -(-grid[1] // stride))
        tokens, embed = prefix + grid[0] * grid[1], f'{stage_name(i)}.embed'
        name = f'{stage_name(i)}.patch_embed.proj'
        terms.append(_from_below(arch, i, name, grid[0] * grid[1] * kernel**2, embed))
        ratio = arch.sr_ratios[i]
        seen = tokens if ratio == 1 else (grid[0] // ratio) * (grid[1] // ratio)
        for j, side in enumerate(windows.sizes(depth)[:running]):
            pairs = _window_pairs(grid, side, prefix) if side else tokens * seen
            terms += [*_block_macs(i, j, embed, tokens, seen, pairs), *table.block_macs(arch, i, j, tokens, seen)]
    last = f'{stage_name(arch.num_stages - 1)}.embed'
    return [*terms, Term('head', num_classes, (last,))]


def param_terms(arch: ArchSpec, num_classes: int = 0) -> list[Term]:
    """Parameters, biases and norms included; see ``count_params``."""
    terms, table = [], table_of(arch)
    for i, depth in enumerate(arch.depths):
        stage, embed = stage_name(i), f'{stage_name(i)}.embed'
        terms.append(_from_below(arch, i, f'{stage}.patch_embed.proj', arch.patch_kernels[i] ** 2, embed))
        terms += [Term(f'{stage}.patch_embed.proj', 1, (embed,)), Term(f'{stage}.norm', 2, (embed,))]
        terms += table.stage_params(arch, i)
        for j in range(depth):
            terms += [*_block_params(arch, i, j, embed), *table.block_params(arch, i, j)]
    last = f'{stage_name(arch.num_stages - 1)}.embed'
    return [*terms, Term('head', num_classes, (last,)), Term('head', num_classes)]


def _from_below(arch: ArchSpec, i: int, module: str, factor: int, embed: str) -> Term:
    """A patch embedding reads the image, whose channels are fixed, or the embedding of the stage before."""
    if i == 0:
        return Term(module, factor * arch.in_channels, (embed,))
    return Term(module, factor, (f'{stage_name(i - 1)}.embed', embed))


def _window_pairs(grid: Size, window_size: int, prefix: int) -> int:
    """Pairs of query and key in windowed attention, including the padding at the edges."""
    window = (min(window_size, grid[0]), min(window_size, grid[1]))
    if window == grid:
        return (prefix + grid[0] * grid[1]) ** 2
    windows = -(-grid[0] // window[0]) * -(-grid[1] // window[1])
    area = window[0] * window[1]
    return windows * area * (prefix + area) + prefix * (prefix + grid[0] * grid[1])


def _block_macs(i: int, j: int, embed: str, tokens: int, seen: int, pairs: int) -> list[Term]:
    block = block_name(i, j)
    qk, v, hidden = f'{block}.qk', f'{block}.v', f'{block}.mlp_hidden'
    return [
        Term(f'{block}.attn.q', tokens, (embed, qk)),
        Term(f'{block}.attn.k', seen, (embed, qk)),
        Term(f'{block}.attn.v', seen, (embed, v)),
        Term(f'{block}.attn', pairs, (qk,)),
        Term(f'{block}.attn', pairs, (v,)),
        Term(f'{block}.attn.proj', tokens, (v, embed)),
        Term(f'{block}.mlp.fc1', tokens, (embed, hidden)),
        Term(f'{block}.mlp.fc2', tokens, (hidden, embed)),
    ]


def _block_params(arch: ArchSpec, i: int, j: int, embed: str) -> list[Term]:
    block = block_name(i, j)
    qk, v, hidden = f'{block}.qk', f'{block}.v', f'{block}.mlp_hidden'
    terms = [Term(f'{block}.{norm}', 2, (embed,)) for norm in ('norm1', 'norm2')]
    sides = {'attn.q': (embed, qk), 'attn.k': (embed, qk), 'attn.v': (embed, v), 'attn.proj': (v, embed)}
    for module, (source, out) in (sides | {'mlp.fc1': (embed, hidden), 'mlp.fc2': (hidden, embed)}).items():
        terms.append(Term(f'{block}.{module}', 1, (source, out)))
        if module != 'attn.k' or arch.kind.key_bias:
            terms.append(Term(f'{block}.{module}', 1, (out,)))
    return terms
