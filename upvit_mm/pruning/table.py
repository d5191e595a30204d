"""Words in which both families write their tables of dims."""

from __future__ import annotations

from collections.abc import Iterator

Slot = tuple[str, int]  # (tensor of a classifier's state dict, axis)

BACKBONE = 'backbone.'


def stage_name(i: int) -> str:
    return f'stages.{i}'


def block_name(i: int, j: int) -> str:
    return f'stages.{i}.blocks.{j}'


def rows(module: str) -> Iterator[Slot]:
    """Output channels of a Linear or a convolution, or the channels of a norm: axis 0 of weight and bias."""
    yield f'{BACKBONE}{module}.weight', 0
    yield f'{BACKBONE}{module}.bias', 0


def columns(module: str) -> Iterator[Slot]:
    """Input channels of a Linear or a convolution."""
    yield f'{BACKBONE}{module}.weight', 1


def head_columns() -> Iterator[Slot]:
    """The classifier's linear head reads the last embedding."""
    yield 'head.fc.weight', 1


def block_embed_slots(i: int, j: int) -> Iterator[Slot]:
    """Where a block touches the residual stream, in both families."""
    block = block_name(i, j)
    for norm in ('norm1', 'norm2'):
        yield from rows(f'{block}.{norm}')
    for reader in ('attn.q', 'attn.k', 'attn.v', 'mlp.fc1'):
        yield from columns(f'{block}.{reader}')
    for writer in ('attn.proj', 'mlp.fc2'):
        yield from rows(f'{block}.{writer}')


def qk_slots(i: int, j: int) -> Iterator[Slot]:
    """Channel c of queries and keys."""
    yield from rows(f'{block_name(i, j)}.attn.q')
    yield from rows(f'{block_name(i, j)}.attn.k')


def v_slots(i: int, j: int) -> Iterator[Slot]:
    """Channel c of values and column c of the projection."""
    yield from rows(f'{block_name(i, j)}.attn.v')
    yield from columns(f'{block_name(i, j)}.attn.proj')


def kernel_sides(module: str) -> Iterator[Slot]:
    yield f'{BACKBONE}{module}.weight', 2
    yield f'{BACKBONE}{module}.weight', 3
