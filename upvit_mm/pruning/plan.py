"""PrunePlan: which channels and blocks of a network stay."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from upvit_mm.arch import ArchSpec
from upvit_mm.files import sealed, unsealed, write_text_atomically
from upvit_mm.pruning.cosines import narrowing
from upvit_mm.pruning.depth import Pair, all_blocks, check_blocks
from upvit_mm.pruning.dims import PrunableDim, prunable_dims
from upvit_mm.pruning.table import block_name, stage_name

PLAN_VERSION, TURNED_VERSION = 1, 2  # an older package must not take directions for channels
Blocks = tuple[tuple[Pair, ...], ...]  # [stage][new block]


@dataclass(frozen=True)
class PrunePlan:
    """Which channels and blocks of a network stay; ``make_plan`` makes and checks a plan.

    Attributes:
        source_arch: the dense architecture.
        target_arch: the pruned one.
        kept: kept channels by dim name of the source: sorted, unique int64, absolute on the axis.
        kept_blocks: per stage and new block, the source blocks of its attention and of its feed-forward network.
        turned: names of the ``embed`` dims whose kept channels are directions of a turned network (``stream_axes.py``);
            the first is 0.
        meta: provenance and predicted costs, plain data.
    """

    source_arch: ArchSpec
    target_arch: ArchSpec
    kept: dict[str, Tensor]
    kept_blocks: Blocks
    turned: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)

    def embedding(self, stage: int, tokens: Tensor) -> Tensor:
        """What a pruned stage carries of the dense residual stream ``(..., C)``: ``(..., C')``."""
        name = f'{stage_name(stage)}.embed'
        if name not in self.turned:
            return tokens.index_select(-1, self.kept[name].to(tokens.device, non_blocking=True))
        write, _ = narrowing(self.kept[name], tokens.shape[-1])
        return tokens @ write.T.to(tokens, non_blocking=True)

    def save(self, path: str | os.PathLike) -> Path:
        """Write ``plan.json`` atomically, with its own ``sha256`` in it."""
        content = {
            'version': TURNED_VERSION if self.turned else PLAN_VERSION,
            'source_arch': self.source_arch.to_dict(),
            'target_arch': self.target_arch.to_dict(),
            'kept': {name: indices.tolist() for name, indices in self.kept.items()},
            'kept_blocks': self.kept_blocks,
            **({'turned': self.turned} if self.turned else {}),
            'meta': self.meta,
        }
        return write_text_atomically(path, json.dumps(sealed(content)) + '\n')

    @classmethod
    def load(cls, path: str | os.PathLike) -> PrunePlan:
        """Read and check ``plan.json``.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a plan, another version, or one that contradicts itself.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f'plan {str(path)!r} does not exist; tools/prune.py writes it.')
        try:
            content = unsealed(json.loads(path.read_text(encoding='utf-8')), 'content')
            version = content['version']
            source, target = (ArchSpec.from_dict(content[key]) for key in ('source_arch', 'target_arch'))
            kept, blocks, meta = content['kept'], content['kept_blocks'], dict(content['meta'])
            turned = content.get('turned', ())
            plan = make_plan(source, kept, blocks, target.num_heads, target.qk_scales, target.name, turned)
        except OSError:
            raise
        except Exception as error:  # a file edited by hand can raise almost any error
            raise ValueError(f'plan {str(path)!r} is damaged or no plan: {error}.') from error
        if version not in (PLAN_VERSION, TURNED_VERSION):
            raise ValueError(
                f'plan {str(path)!r} has version {version!r}: this package reads {PLAN_VERSION} and {TURNED_VERSION}.'
            )
        if plan.target_arch != target:
            raise ValueError(f'plan {str(path)!r}: kept channels and blocks do not give its target_arch.')
        return replace(plan, meta=meta)


def make_plan(
    source: ArchSpec,
    kept: Mapping[str, Sequence[int] | Tensor],
    kept_blocks: Sequence[Sequence[Pair]] | None = None,
    num_heads: Sequence[Sequence[int]] | None = None,
    qk_scales: Sequence[Sequence[float]] | None = None,
    name: str = '',
    turned: Collection[str] = (),
) -> PrunePlan:
    """A plan from the channels and blocks that stay.

    Args:
        source: the dense architecture.
        kept: kept channels by dim name; a dim that is left out keeps all channels. In ``qk`` and ``v`` the sorted
            channels go to the new heads in consecutive runs of equal length.
        kept_blocks: per stage, see ``PrunePlan``; None keeps all.
        num_heads: heads of the new blocks, ``[stage][new block]``; None keeps those of the source.
        qk_scales: logit scales of the new blocks; None keeps those of the source, so that the pruned network computes
            what was scored. Other values are folded into the weights of q when the network is sliced.
        name: name of the target architecture.
        turned: see ``PrunePlan``.

    Raises:
        ValueError: an unknown dim, directions without the mean, channels out of range or twice, an impossible stack of
            blocks, or widths that the heads do not divide.
    """
    dims = prunable_dims(source)
    unknown = sorted(set(kept) - set(dims))
    if unknown:
        known = ', '.join(list(dims)[:5])
        raise ValueError(f'kept has unknown dim(s) {", ".join(unknown[:5])}; the source has {known}, ...')
    indices = {n: _indices(n, kept[n] if n in kept else range(d.size), d.size) for n, d in dims.items()}
    for dim_name in turned:
        if dim_name not in dims or dims[dim_name].kind != 'embed' or int(indices[dim_name][0]):
            raise ValueError(f'turned has {dim_name!r}: must name an embed dim of the source that keeps direction 0.')
    if kept_blocks is None:
        kept_blocks = [all_blocks(depth) for depth in source.depths]
    blocks = _checked_blocks(kept_blocks, source)

    def of_attn(values):
        return tuple(tuple(values[i][attn] for attn, _ in pairs) for i, pairs in enumerate(blocks))

    def width(kind: str, part: int):
        names = [[f'{block_name(i, pair[part])}.{kind}' for pair in pairs] for i, pairs in enumerate(blocks)]
        return tuple(tuple(len(indices[name]) for name in stage) for stage in names)

    target = replace(
        source,
        name=name,
        embed_dims=tuple(len(indices[f'{stage_name(i)}.embed']) for i in range(source.num_stages)),
        depths=tuple(len(pairs) for pairs in blocks),
        num_heads=num_heads or of_attn(source.num_heads),
        qk_dims=width('qk', 0),
        v_dims=width('v', 0),
        mlp_hidden_dims=width('mlp_hidden', 1),
        qk_scales=qk_scales or of_attn(source.qk_scales),
    )
    plan = PrunePlan(source, target, indices, blocks, tuple(turned))
    _check_pairs(plan)
    return plan


def _checked_blocks(kept_blocks: Sequence[Sequence[Pair]], source: ArchSpec) -> Blocks:
    if len(kept_blocks) != source.num_stages:
        raise ValueError(f'kept_blocks has {len(kept_blocks)} stage(s): the source has {source.num_stages}.')
    stages = enumerate(zip(kept_blocks, source.depths))
    return tuple(check_blocks(f'kept_blocks[{i}]', pairs, depth) for i, (pairs, depth) in stages)


def _check_pairs(plan: PrunePlan) -> None:
    """Refuse half a pair of rotary channels, and heads that mix those of the source."""
    dims = prunable_dims(plan.source_arch)
    for i, pairs in enumerate(plan.kept_blocks):
        for new, (attn, _) in enumerate(pairs):
            dim = dims[f'{block_name(i, attn)}.qk']
            if dim.paired:
                _check_pairs_of(dim, plan.kept[dim.name], plan.target_arch.num_heads[i][new])


def _check_pairs_of(dim: PrunableDim, kept: Tensor, heads: int) -> None:
    first, second = kept.view(heads, 2, -1).unbind(1)  # (heads, d'/2)
    owners = kept.view(heads, -1) // (dim.size // dim.groups)
    if not torch.equal(dim.partners()[first], second) or bool((owners != owners[:, :1]).any()):
        raise ValueError(
            f'kept[{dim.name!r}] splits a pair: of d rotary channels in a head, c and c + d/2 stay or go together.'
        )


def _indices(name: str, values: Sequence[int] | Tensor, size: int) -> Tensor:
    indices = torch.as_tensor(values if isinstance(values, Tensor) else list(values))
    valid = indices.ndim == 1 and len(indices) and not indices.is_floating_point()
    indices = indices.to(torch.int64)
    if not valid or int(indices.min()) < 0 or int(indices.max()) >= size or not bool((indices.diff() > 0).all()):
        raise ValueError(
            f'kept[{name!r}] = {indices.tolist()[:10]}: must be sorted, unique channels of 0 to {size - 1}, 1 or more.'
        )
    return indices
