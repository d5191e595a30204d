"""The table of plain ViTs: one embedding through the whole network (UP-ViTs, sec. 3.2)."""

from __future__ import annotations

from collections.abc import Iterator

from upvit_mm.arch import ArchSpec
from upvit_mm.pruning.table import (
    BACKBONE,
    Slot,
    Table,
    Term,
    block_embed_slots,
    block_name,
    block_stream_readers,
    columns,
    head_columns,
    kernel_sides,
    rows,
    stage_name,
)


class ViTTable(Table):
    """See ``Table``."""

    def embed_slots(self, arch: ArchSpec, i: int) -> Iterator[Slot]:
        """Patch embedding, prefix tokens, positions, norms, inputs of q, k, v, fc1, outputs of proj, fc2, the head."""
        for name in _tokens(arch):
            yield Slot(f'{BACKBONE}{name}', 2)
        yield from rows(f'stages.{i}.patch_embed.proj')
        for j in range(arch.depths[i]):
            yield from block_embed_slots(arch, i, j)
        yield from rows(f'stages.{i}.norm')
        yield from head_columns()

    def stream_readers(self, arch: ArchSpec, i: int) -> dict[str, list[str]]:
        readers = {f'{BACKBONE}{stage_name(i)}.norm': ['head.fc.weight']}
        for j in range(arch.depths[i]):
            readers |= block_stream_readers(arch, i, j)
        return readers

    def qk_slots(self, arch: ArchSpec, i: int, j: int) -> Iterator[Slot]:
        yield from super().qk_slots(arch, i, j)
        if arch.kind.rotary:
            yield Slot(f'{BACKBONE}{block_name(i, j)}.attn.rotary.frequencies', 0, is_learned=False)

    def fixed_slots(self, arch: ArchSpec) -> Iterator[Slot]:
        for name in _tokens(arch):
            yield Slot(f'{BACKBONE}{name}', 0)
            yield Slot(f'{BACKBONE}{name}', 1)
        yield from columns('stages.0.patch_embed.proj')
        yield from kernel_sides('stages.0.patch_embed.proj')
        if arch.kind.rotary:
            for j in range(arch.depths[0]):
                yield Slot(f'{BACKBONE}{block_name(0, j)}.attn.rotary.frequencies', 1)

    def stage_params(self, arch: ArchSpec, i: int) -> Iterator[Term]:
        embed = f'{stage_name(i)}.embed'
        for name, count in _tokens(arch).items():
            yield Term(name, count, (embed,))

    def block_params(self, arch: ArchSpec, i: int, j: int) -> Iterator[Term]:
        if arch.ffn == 'swiglu':
            gate, hidden = f'{block_name(i, j)}.mlp.gate', f'{block_name(i, j)}.mlp_hidden'
            yield Term(gate, 1, (f'{stage_name(i)}.embed', hidden))
            yield Term(gate, 1, (hidden,))

    def block_macs(self, arch: ArchSpec, i: int, j: int, tokens: int, seen: int) -> Iterator[Term]:
        if arch.ffn == 'swiglu':
            block = block_name(i, j)
            yield Term(f'{block}.mlp.gate', tokens, (f'{stage_name(i)}.embed', f'{block}.mlp_hidden'))


def _tokens(arch: ArchSpec) -> dict[str, int]:
    """Names and lengths of the parameters that are tokens or are added to them."""
    lengths = {
        'cls_token': 1,
        'reg_token': arch.num_registers,
        'pos_embed': 0 if arch.kind.rotary else 1 + arch.pos_embed_grid**2,  # the class token has a position
    }
    return {name: length for name, length in lengths.items() if length}


TABLE = ViTTable()
