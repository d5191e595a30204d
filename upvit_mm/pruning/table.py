"""The parts of a family's table: which tensor axes shrink together, and what modules cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from upvit_mm.arch import ArchSpec

BACKBONE = 'backbone.'


class Slot(NamedTuple):
    """An axis of a tensor that has the width of a dim.

    Attributes:
        tensor: its name in a classifier's state dict.
        axis: index of the axis.
        tile: number of copies of the dim, one after the other on the axis, for example where patches are merged.
        per_head: whether the axis has one place for each head of the dim, like a table of biases; otherwise one for
            each channel.
        is_learned: whether it is of a parameter; otherwise of a constant of the network.
    """

    tensor: str
    axis: int
    tile: int = 1
    per_head: bool = False
    is_learned: bool = True

    def length(self, size: int, heads: int) -> int:
        """Length of the axis, for a dim of ``size`` channels in ``heads`` heads."""
        return self.tile * (heads if self.per_head else size)

    def places(self, kept: Tensor, length: int) -> Tensor:
        """Kept indices of an axis of this length when these channels (or heads) are kept."""
        return torch.cat([kept + copy * (length // self.tile) for copy in range(self.tile)])


@dataclass(frozen=True)
class Term:
    """A cost: ``factor`` times the widths of ``dims``, for one module.

    Attributes:
        module: its name in the backbone, or ``head``.
        factor: what one channel of each of ``dims`` costs.
        dims: names of zero, one or two dims (the same name twice for a square layer).
    """

    module: str
    factor: int
    dims: tuple[str, ...] = ()

    def cost(self, widths: Mapping[str, int]) -> int:
        """The cost at these widths, by dim name."""
        return self.factor * prod(widths[name] for name in self.dims)


def stage_name(i: int) -> str:
    """Name of stage ``i`` in the backbone."""
    return f'stages.{i}'


def block_name(i: int, j: int) -> str:
    """Name of block ``j`` of stage ``i`` in the backbone."""
    return f'stages.{i}.blocks.{j}'


def rows(module: str, bias: bool = True) -> Iterator[Slot]:
    """Output channels of a Linear or a convolution, or the channels of a norm: axis 0 of weight and ``bias``."""
    yield Slot(f'{BACKBONE}{module}.weight', 0)
    if bias:
        yield Slot(f'{BACKBONE}{module}.bias', 0)


def columns(module: str) -> Iterator[Slot]:
    """Input channels of a Linear or a convolution."""
    yield Slot(f'{BACKBONE}{module}.weight', 1)


def head_columns() -> Iterator[Slot]:
    """The classifier's linear head reads the last embedding."""
    yield Slot('head.fc.weight', 1)


def ffn_readers(arch: ArchSpec) -> tuple[str, ...]:
    """Layers of a feed-forward network that read the residual stream; channel c of one belongs to channel c of all."""
    return ('mlp.gate', 'mlp.fc1') if arch.ffn == 'swiglu' else ('mlp.fc1',)


def block_embed_slots(arch: ArchSpec, i: int, j: int) -> Iterator[Slot]:
    """Where a block touches the residual stream, in all families."""
    block = block_name(i, j)
    for norm in ('norm1', 'norm2'):
        yield from rows(f'{block}.{norm}')
    for reader in ('attn.q', 'attn.k', 'attn.v', *ffn_readers(arch)):
        yield from columns(f'{block}.{reader}')
    for writer in ('attn.proj', 'mlp.fc2'):
        yield from rows(f'{block}.{writer}')


def block_stream_readers(arch: ArchSpec, i: int, j: int) -> dict[str, list[str]]:
    """By norm of a block, the weights that read its output."""
    block = f'{BACKBONE}{block_name(i, j)}'
    return {
        f'{block}.norm1': [f'{block}.attn.{layer}.weight' for layer in 'qkv'],
        f'{block}.norm2': [f'{block}.{layer}.weight' for layer in ffn_readers(arch)],
    }


def kernel_sides(module: str) -> Iterator[Slot]:
    """Height and width of the kernel of a convolution."""
    yield Slot(f'{BACKBONE}{module}.weight', 2)
    yield Slot(f'{BACKBONE}{module}.weight', 3)


class Table:
    """What a family declares: axes that shrink together, axes that never shrink, and the costs of its own parts.

    This class has what all families share; ``costs.py`` counts the parts that all families have.
    """

    def embed_slots(self, arch: ArchSpec, i: int) -> Iterator[Slot]:
        """Every axis that has the width of a stage's embedding."""
        raise AssertionError('every family declares the slots of its embedding')

    def qk_slots(self, arch: ArchSpec, i: int, j: int) -> Iterator[Slot]:
        """Channel c of queries and keys."""
        yield from rows(f'{block_name(i, j)}.attn.q')
        yield from rows(f'{block_name(i, j)}.attn.k', arch.kind.key_bias)

    def v_slots(self, arch: ArchSpec, i: int, j: int) -> Iterator[Slot]:
        """Channel c of values and column c of the projection."""
        yield from rows(f'{block_name(i, j)}.attn.v')
        yield from columns(f'{block_name(i, j)}.attn.proj')

    def mlp_hidden_slots(self, arch: ArchSpec, i: int, j: int) -> Iterator[Slot]:
        """Row of fc1 (and of the gate) and column of fc2."""
        for layer in ffn_readers(arch):
            yield from rows(f'{block_name(i, j)}.{layer}')
        yield from columns(f'{block_name(i, j)}.mlp.fc2')

    def entry_layers(self, arch: ArchSpec, i: int) -> tuple[str, ...]:
        """Layers of a stage's patch embedding, in their order, that compensation corrects: a convolution to the stage's
        embedding and its norm."""
        return ()

    def stream_readers(self, arch: ArchSpec, i: int) -> dict[str, list[str]]:
        """By norm of a stage, the weights that read its output; nothing else reads the residual stream.

        Raises:
            ValueError: something else writes or reads the stream of this family, so it cannot be rotated exactly.
        """
        raise ValueError(f'embed: a {arch.family} cannot be rotated; its channels can be cut (embed = channels).')

    def stream_writers(self, arch: ArchSpec, i: int) -> list[Slot]:
        """Axes of the tensors whose values are added up in the residual stream of a stage."""
        read = {key for keys in self.stream_readers(arch, i).values() for key in keys}
        norms = {f'{norm}.{part}' for norm in self.stream_readers(arch, i) for part in ('weight', 'bias')}
        return [slot for slot in self.embed_slots(arch, i) if slot.tensor not in read | norms]

    def fixed_slots(self, arch: ArchSpec) -> Iterator[Slot]:
        """Axes that no dim owns: image channels, kernel sides, token counts."""
        raise AssertionError('every family declares which axes never shrink')

    def stage_params(self, arch: ArchSpec, i: int) -> Iterator[Term]:
        """Parameters of a stage, without its blocks, that other families do not have."""
        yield from ()

    def block_params(self, arch: ArchSpec, i: int, j: int) -> Iterator[Term]:
        """Parameters of a block that other families do not have."""
        yield from ()

    def block_macs(self, arch: ArchSpec, i: int, j: int, tokens: int, seen: int) -> Iterator[Term]:
        """Multiply-accumulates of those parts, for ``tokens`` queries and ``seen`` keys."""
        yield from ()
