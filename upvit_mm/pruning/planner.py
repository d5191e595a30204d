"""From scores to a plan: which channels stay for a target of the same depth."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from upvit_mm.arch import ArchSpec
from upvit_mm.choices import HEAD_POLICIES
from upvit_mm.pruning.depth import all_blocks, check_blocks
from upvit_mm.pruning.dims import PrunableDim, prunable_dims
from upvit_mm.pruning.plan import Blocks, PrunePlan, make_plan
from upvit_mm.pruning.table import block_name, stage_name


def plan_for_target(
    source: ArchSpec,
    target: ArchSpec,
    scores: Mapping[str, Tensor],
    head_policy: str = 'within',
    tie_qkv: bool = False,
    kept_blocks: Blocks | None = None,
    turned: Collection[str] = (),
) -> PrunePlan:
    """The plan that keeps the channels with the highest scores, for the widths of ``target``.

    Args:
        source: the dense architecture.
        target: widths and heads to reach; its logit scales are folded into q when the network is sliced. The plan keeps
            the image size of the source.
        scores: by dim name, ``(size,)``, higher = keep; ties go to the higher channel.
        head_policy: what happens to attention heads. ``'within'``: every head shrinks, by the scores inside it (the
            number of heads stays). ``'select'``: whole heads of q/k and v together stay, by the sum of their mean
            scores (their widths stay). ``'regroup'``: the channels are cut into as many runs as there are new heads,
            and the best of each run form one head, as in the authors' code. This mixes old heads, so the network does
            not compute what was scored.
        tie_qkv: one index set for q, k and v, chosen by the sum of both scores, as in the authors' code. It needs equal
            widths of q/k and v, in source and target.
        kept_blocks: source blocks of the target's blocks when it is shallower; None for equal depths.
        turned: see ``PrunePlan``; scores of these dims are those of directions (``Walk.with_means``).

    Raises:
        ValueError: another family, wider or deeper targets, heads that the policy cannot make, missing or bad scores.
    """
    if head_policy not in HEAD_POLICIES:
        raise ValueError(f'head_policy = {head_policy!r}: must be one of {", ".join(HEAD_POLICIES)}.')
    blocks, dims = _blocks(source, target, kept_blocks), prunable_dims(source)
    check_scores(dims, scores)
    kept: dict[str, Tensor] = {}
    for i, pairs in enumerate(blocks):
        name = f'{stage_name(i)}.embed'
        kept[name] = best(scores[name], target.embed_dims[i], name)
        for new, (attn, mlp) in enumerate(pairs):
            hidden = f'{block_name(i, mlp)}.mlp_hidden'
            kept[hidden] = best(scores[hidden], target.mlp_hidden_dims[i][new], hidden)
            name, heads = block_name(i, attn), (source.num_heads[i][attn], target.num_heads[i][new])
            widths = {f'{name}.qk': target.qk_dims[i][new], f'{name}.v': target.v_dims[i][new]}
            unit = dims[f'{name}.qk'].unit
            kept |= _attention(scores, widths, *heads, head_policy, tie_qkv, unit)
    plan = make_plan(source, kept, blocks, target.num_heads, target.qk_scales, target.name, turned)
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


def joint_scores(scores: Mapping[str, Tensor], names: Sequence[str]) -> list[Tensor]:
    """Scores of dims that lose channels together, as a list to sum: each measurement once.

    The authors removed a channel of q, k and v at once, so both of our dims hold the same numbers; these count once.
    """
    first, *others = (scores[name] for name in names)
    return [first, *(other for other in others if not torch.equal(other, first))]


def head_scores(scores: Sequence[Tensor], heads: int) -> Tensor:
    """Scores of whole heads, ``(heads,)``: the mean over a head's channels, summed over dims of any widths."""
    return sum(values.unflatten(0, (heads, -1)).mean(dim=1) for values in scores)


def check_tied(qk: str, v: str, sizes: Sequence[int], widths: Sequence[int] = ()) -> None:
    """Refuse to tie q/k and v of different widths.

    Args:
        qk, v: names of the dims.
        sizes: widths of both in the source.
        widths: widths of both in the target, if there is one.

    Raises:
        ValueError: they differ.
    """
    for pair, where in ((sizes, 'source'), (widths, 'target')):
        if len(set(pair)) > 1:
            raise ValueError(
                f'tie_qkv: {qk} and {v} have different widths and cannot share one index set '
                f'({" and ".join(map(str, pair))} channels in the {where}); leave tie_qkv out.'
            )


def _attention(
    scores: Mapping[str, Tensor],
    widths: Mapping[str, int],
    old_heads: int,
    new_heads: int,
    policy: str,
    tie: bool,
    unit: int,
) -> dict[str, Tensor]:
    """Kept channels of q/k and v of a block; ``widths`` are those of the target by dim name, q/k first.

    ``unit`` is that of q/k (``PrunableDim``); tied values follow it.
    """
    joint = joint_scores(scores, list(widths))
    if tie:
        check_tied(*widths, [len(scores[name]) for name in widths], list(widths.values()))
    if policy == 'select':  # for q, k and v together: half a head is none
        ranking = head_scores(joint, old_heads)
        return {name: _select(ranking, len(scores[name]), widths[name], new_heads, name) for name in widths}
    rankings = dict.fromkeys(widths, sum(joint)) if tie else scores
    if policy == 'within' and new_heads != old_heads:
        raise ValueError(
            f"{next(iter(widths))}: head_policy 'within' keeps the {old_heads} heads, the target has {new_heads}; use "
            "'select' or 'regroup'."
        )
    if policy == 'regroup' and unit > 1:
        raise ValueError("head_policy = 'regroup': rotary channels belong to their heads; take 'within' or 'select'.")
    units = dict(zip(widths, (unit, unit if tie else 1)))
    return {name: _best_of_runs(rankings[name], width, new_heads, name, units[name]) for name, width in widths.items()}


def _select(ranking: Tensor, size: int, width: int, new_heads: int, name: str) -> Tensor:
    run = size // len(ranking)
    if width != new_heads * run:
        raise ValueError(
            f"{name}: head_policy 'select' keeps heads of {run} channels, the target has {width} in {new_heads} heads; "
            "use 'within' or 'regroup'."
        )
    heads = best(ranking, new_heads, f'heads of {name}')
    return (heads[:, None] * run + torch.arange(run)).flatten()


def _best_of_runs(scores: Tensor, width: int, runs: int, name: str, unit: int) -> Tensor:
    """The best channels of each run; ``unit`` equal parts of a run keep the same places, by their joint scores."""
    if len(scores) % runs or width % (runs * unit):
        together = f' {unit} together' if unit > 1 else ''
        raise ValueError(
            f'{name}: {len(scores)} channels and {width} kept ones do not divide into {runs} heads{together}.'
        )
    run, part = len(scores) // runs, len(scores) // runs // unit
    kept = []
    for k, of_run in enumerate(scores.split(run)):
        places = best(of_run.view(unit, part).sum(dim=0), width // runs // unit, name)
        kept += [k * run + copy * part + places for copy in range(unit)]
    return torch.cat(kept)


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
