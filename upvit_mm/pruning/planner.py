"""From scores to a plan: which channels stay for a target of the same depth."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from upvit_mm.arch import ArchSpec
from upvit_mm.pruning.depth import all_blocks, check_blocks
from upvit_mm.pruning.dims import PrunableDim, prunable_dims
from upvit_mm.pruning.plan import Blocks, PrunePlan, make_plan
from upvit_mm.pruning.table import block_name, stage_name

HEAD_POLICIES = ('within', 'select', 'regroup')


def plan_for_target(
    source: ArchSpec,
    target: ArchSpec,
    scores: Mapping[str, Tensor],
    head_policy: str = 'within',
    tie_qkv: bool = False,
    kept_blocks: Blocks | None = None,
) -> PrunePlan:
    """The plan whose target has the widths of ``target``, made of the highest scores.

    Args:
        source: the dense architecture.
        target: widths and heads to reach; its logit scales are folded into q when the network is sliced. Its image
            size plays no part: the source's stays.
        scores: by dim name, ``(size,)``, higher = keep; ties go to the higher channel.
        head_policy: what happens to attention heads. ``'within'``: every head shrinks, by the scores inside it (the
            number of heads stays). ``'select'``: whole heads stay, by their mean score (their width stays).
            ``'regroup'``: the channels are cut into as many runs as there are new heads and the best of each run
            form one, as the authors' code does; a new head then mixes old ones, so the network computes something else
            than what was scored.
        tie_qkv: one index set for q, k and v, by the sum of both scores, as in the authors' code.
        kept_blocks: source blocks of the target's blocks when it is shallower; None for equal depths.

    Raises:
        ValueError: another family, wider or deeper targets, heads that the policy cannot make, missing or bad scores.
    """
    if head_policy not in HEAD_POLICIES:
        raise ValueError(f'head_policy = {head_policy!r}: must be one of {", ".join(HEAD_POLICIES)}.')
    blocks = _blocks(source, target, kept_blocks)
    dims = prunable_dims(source)
    check_scores(dims, scores)
    kept: dict[str, Tensor] = {}
    for i, pairs in enumerate(blocks):
        name = f'{stage_name(i)}.embed'
        kept[name] = best(scores[name], target.embed_dims[i], name)
        for new, (attn, mlp) in enumerate(pairs):
            hidden = f'{block_name(i, mlp)}.mlp_hidden'
            kept[hidden] = best(scores[hidden], target.mlp_hidden_dims[i][new], hidden)
            qk, v = (f'{block_name(i, attn)}.{kind}' for kind in ('qk', 'v'))
            heads = (source.num_heads[i][attn], target.num_heads[i][new])
            widths = {qk: target.qk_dims[i][new], v: target.v_dims[i][new]}
            if tie_qkv and (dims[qk].size != dims[v].size or widths[qk] != widths[v]):
                raise ValueError(f'tie_qkv: {qk} and {v} have different widths and cannot share one index set.')
            total = scores[qk] + scores[v]
            for dim in (qk, v):
                # whole heads are chosen for q, k and v together: half a head is none
                ranking = total if tie_qkv or head_policy == 'select' else scores[dim]
                kept[dim] = _POLICIES[head_policy](ranking, widths[dim], *heads, dim)
    plan = make_plan(source, kept, blocks, target.num_heads, target.qk_scales, target.name)
    for field in ('embed_dims', 'qk_dims', 'v_dims', 'mlp_hidden_dims'):
        assert getattr(plan.target_arch, field) == getattr(target, field), f'the plan misses the {field} of its target'
    return plan


def check_scores(dims: Mapping[str, PrunableDim], scores: Mapping[str, Tensor]) -> None:
    """Refuse scores that do not belong to these dims.

    Raises:
        ValueError: a dim without scores or with another number of them, NaN or Inf.
    """
    for name, dim in dims.items():
        if name not in scores:
            raise ValueError(f'scores lack {name!r}; they belong to another architecture.')
        if tuple(scores[name].shape) != (dim.size,):
            raise ValueError(
                f'scores of {name!r} have shape {tuple(scores[name].shape)}: the dim has {dim.size} channels.'
            )
        if not torch.isfinite(scores[name]).all():
            raise ValueError(f'scores of {name!r} hold NaN or Inf; score again.')


def best(scores: Tensor, count: int, name: str) -> Tensor:
    """The ``count`` channels with the highest scores, sorted; ties go to the higher channel.

    That is the tail of a stable ascending sort, as in the authors' code.

    Raises:
        ValueError: more channels than there are.
    """
    if count > len(scores):
        raise ValueError(f'{name}: the target keeps {count} of {len(scores)} channels; pruning cannot widen.')
    return scores.argsort(stable=True)[len(scores) - count :].sort().values


def _within(scores: Tensor, width: int, old_heads: int, new_heads: int, name: str) -> Tensor:
    if new_heads != old_heads:
        raise ValueError(
            f"{name}: head_policy 'within' keeps the {old_heads} heads, the target has {new_heads}; use 'select' or "
            "'regroup'."
        )
    return _best_of_runs(scores, width, new_heads, name)


def _select(scores: Tensor, width: int, old_heads: int, new_heads: int, name: str) -> Tensor:
    run = len(scores) // old_heads
    if width != new_heads * run:
        raise ValueError(
            f"{name}: head_policy 'select' keeps heads of {run} channels, the target has {width} in {new_heads} heads; "
            "use 'within' or 'regroup'."
        )
    heads = best(scores.unflatten(0, (old_heads, run)).mean(dim=1), new_heads, f'heads of {name}')
    return (heads[:, None] * run + torch.arange(run)).flatten()


def _regroup(scores: Tensor, width: int, old_heads: int, new_heads: int, name: str) -> Tensor:
    return _best_of_runs(scores, width, new_heads, name)


def _best_of_runs(scores: Tensor, width: int, runs: int, name: str) -> Tensor:
    if len(scores) % runs or width % runs:
        raise ValueError(f'{name}: {len(scores)} channels and {width} kept ones do not divide into {runs} heads.')
    run = len(scores) // runs
    return torch.cat([best(part, width // runs, name) + k * run for k, part in enumerate(scores.split(run))])


_POLICIES: dict[str, Callable[..., Tensor]] = {'within': _within, 'select': _select, 'regroup': _regroup}


def _blocks(source: ArchSpec, target: ArchSpec, kept_blocks: Blocks | None) -> Blocks:
    if source.family != target.family:
        raise ValueError(f'target family = {target.family!r}: the source is a {source.family}.')
    for field in ('patch_size', 'in_channels', 'sr_ratios'):
        if getattr(target, field) != getattr(source, field):
            raise ValueError(
                f'target {field} = {getattr(target, field)}: pruning cannot change it, the source has '
                f'{getattr(source, field)}.'
            )
    if kept_blocks is None:
        kept_blocks = tuple(all_blocks(depth) for depth in source.depths)
    blocks = tuple(check_blocks(f'kept_blocks[{i}]', p, d) for i, (p, d) in enumerate(zip(kept_blocks, source.depths)))
    depths = tuple(map(len, blocks))
    if depths != target.depths:
        raise ValueError(
            f'target depths = {list(target.depths)}: kept_blocks leave {list(depths)}; choose blocks with depth scores.'
        )
    return blocks
