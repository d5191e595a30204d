"""Repairs of sliced classifiers in the spirit of other papers, for comparison: their ideas, not their code.

What they have in common: every layer is repaired by itself, from the second moments of its inputs in the dense network.
Only the layers that read a cut width of a branch change (``attn.proj``, ``mlp.fc2``). A cut embedding stays as it was
sliced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from upvit_mm.pruning import PrunePlan, slice_state
from upvit_mm.pruning.batch import Batch
from upvit_mm.pruning.depth import all_blocks
from upvit_mm.pruning.slicer import State
from upvit_mm.pruning.streams import Room, Stream
from upvit_mm.pruning.table import BACKBONE, block_name
from upvit_mm.pruning.walk import Walk

HEAD = 'head.fc.'
# (second moment (F+1, F+1) of F channels and a column of ones, kept channels, ridge) -> (weights (F, k), offset (F,)):
# all channels from those that stay
Reconstruction = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]


def state_of(net: Walk) -> State:
    """The tensors of a classifier, ``backbone.*`` and ``head.fc.*``."""
    state = {f'{BACKBONE}{key}': value for key, value in net.backbone.state_dict().items()}
    return state | {f'{HEAD}{key}': value for key, value in net.head.state_dict().items()}


def grail_like(net: Walk, plan: PrunePlan, batches: Sequence[Batch], ridge: float) -> State:
    """In the spirit of GRAIL (arXiv 2602.23795): what reads a cut width gets a ridge reconstruction of all channels.

    Args:
        net: the dense classifier.
        plan: what stays; all blocks.
        batches: unlabelled images.
        ridge: in units of the mean square of the channels that stay.

    Returns:
        The tensors of the pruned classifier.

    Raises:
        ValueError: no images.
    """
    return reconstructed(net, plan, batches, gram_reconstruction, ridge)


def sparsegpt_like(net: Walk, plan: PrunePlan, batches: Sequence[Batch], ridge: float) -> State:
    """In the spirit of SnapViT's correction by SparseGPT (arXiv 2510.17700): the optimal-brain update of kept columns.

    Args:
        net, plan, batches, ridge: see ``grail_like``.

    Returns:
        The tensors of the pruned classifier.

    Raises:
        ValueError: no images.
    """
    return reconstructed(net, plan, batches, brain_surgeon, ridge)


def corp_like(net: Walk, plan: PrunePlan, batches: Sequence[Batch], ridge: float) -> State:
    """In the spirit of CORP (arXiv 2602.05243): affine maps of removed channels, and a map of removed logits.

    The affine map is for hidden channels of the feed-forward network and for values; it is folded into ``mlp.fc2`` and
    ``attn.proj`` with their biases. The products of removed query and key channels are mapped from those that stay,
    which is folded into the kept queries.

    Args:
        net, plan, batches, ridge: see ``grail_like``.

    Returns:
        The tensors of the pruned classifier.

    Raises:
        ValueError: no images.
    """
    state = reconstructed(net, plan, batches, affine, ridge)
    return with_mapped_logits(state, net, plan, batches, ridge)


# -------------------------------------------------------------- reconstructions


def gram_reconstruction(moment: Tensor, kept: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """``G[:, K] (G[K, K] + ridge)^-1`` of the Gram matrix, for all channels; no offset. See ``Reconstruction``."""
    gram = moment[:-1, :-1]
    return _ridge(gram[kept][:, kept], gram[kept], ridge).T, gram.new_zeros(len(gram))


def brain_surgeon(moment: Tensor, kept: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """The same for the removed channels only, so that ``W_K`` becomes ``W_K + W_R H[R, K] (H[K, K] + ridge)^-1``."""
    weights, offset = gram_reconstruction(moment, kept, ridge)
    weights[kept] = torch.eye(len(kept)).to(weights)
    return weights, offset


def affine(moment: Tensor, kept: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Removed channels as an affine function of the kept ones, from their covariance and means."""
    mean = moment[-1, :-1] / moment[-1, -1]
    covariance = moment[:-1, :-1] / moment[-1, -1] - torch.outer(mean, mean)
    weights = _ridge(covariance[kept][:, kept], covariance[kept], ridge).T
    weights[kept] = torch.eye(len(kept)).to(weights)
    return weights, mean - weights @ mean[kept]


@torch.no_grad()
def reconstructed(
    net: Walk, plan: PrunePlan, batches: Sequence[Batch], reconstruct: Reconstruction, ridge: float
) -> State:
    """The pruned classifier in which ``attn.proj`` and ``mlp.fc2`` read reconstructed channels.

    Args:
        net, plan, batches, ridge: see ``grail_like``.
        reconstruct: of the channels of a branch.
    """
    state = slice_state(state_of(net), plan)
    for stream in _before_branches(net, plan, batches):
        block = block_name(stream.stage, stream.half // 2)
        layer, dim = ('mlp.fc2', 'mlp_hidden') if stream.half % 2 else ('attn.proj', 'v')
        dense, kept = net.backbone.get_submodule(f'{block}.{layer}'), plan.kept[f'{block}.{dim}']
        if len(kept) == dense.in_features:
            continue
        moment = sum(_second_moment(stream.look(k, [dense]).inputs[0]) for k in range(len(stream.parts)))
        weights, offset = reconstruct(moment, kept, ridge)
        weight = dense.weight.double()
        columns = plan.embedding(stream.stage, (weight @ weights).T)  # (k, C')
        bias = plan.embedding(stream.stage, dense.bias.double() + weight @ offset)
        state[f'{BACKBONE}{block}.{layer}.weight'] = columns.T.to(dense.weight).contiguous()
        state[f'{BACKBONE}{block}.{layer}.bias'] = bias.to(dense.bias)
    return state


# ----------------------------------------------------------------------- logits


@torch.no_grad()
def with_mapped_logits(state: State, net: Walk, plan: PrunePlan, batches: Sequence[Batch], ridge: float) -> State:
    """The tensors of a pruned classifier whose kept queries make up for the removed products, see ``corp_like``."""
    state = dict(state)
    for stream in _before_branches(net, plan, batches):
        block = block_name(stream.stage, stream.half // 2)
        dense, kept = net.backbone.get_submodule(f'{block}.attn'), plan.kept[f'{block}.qk']
        heads = dense.num_heads
        if stream.half % 2 or len(kept) == dense.q.out_features:
            continue
        looks = [stream.look(k, [dense.q, dense.k]).outputs for k in range(len(stream.parts))]
        queries, keys = (
            torch.cat([out.unflatten(-1, (dense.num_heads, -1)).transpose(1, 2) for out in outs])
            for outs in zip(*looks)
        )  # (B, h, n, d)
        kept = kept.view(heads, -1) - torch.arange(heads)[:, None] * queries.shape[-1]
        maps = [logit_map(queries[:, h], keys[:, h], kept[h], ridge) for h in range(heads)]
        for key in (f'{BACKBONE}{block}.attn.q.{part}' for part in ('weight', 'bias')):
            rows = state[key].double().unflatten(0, (heads, -1))  # (h, r, C) or (h, r)
            rows = torch.stack([row + change.T @ row for row, change in zip(rows, maps)])
            state[key] = rows.flatten(0, 1).to(state[key])
    return state


def logit_map(queries: Tensor, keys: Tensor, kept: Tensor, ridge: float) -> Tensor:
    """The ``(r, r)`` matrix M for which ``q_K^T M k_K`` is closest to the removed part of the logits ``q_R^T k_R``.

    Args:
        queries: of one head, ``(B, N, d)``.
        keys: of one head, ``(B, M, d)``; every query of an image meets every key of it.
        kept: the ``r`` channels of the head that stay.
        ridge: in units of the mean square of ``q_K k_K^T``.
    """
    stays = torch.zeros(queries.shape[-1], dtype=torch.bool)
    stays[kept] = True
    q, k = (x.double().transpose(1, 2) @ x.double() for x in (queries, keys))  # (B, d, d)
    size = len(kept)
    system = torch.einsum('bac,bde->adce', q[:, stays][:, :, stays], k[:, stays][:, :, stays])
    wanted = torch.einsum('bar,brd->ad', q[:, stays][:, :, ~stays], k[:, ~stays][:, :, stays])
    return _ridge(system.reshape(size**2, size**2), wanted.reshape(-1, 1), ridge).view(size, size)


def _before_branches(net: Walk, plan: PrunePlan, batches: Sequence[Batch]) -> Iterator[Stream]:
    """The stream of the dense network before each of its branches, in their order."""
    depths = net.backbone.arch.depths
    assert plan.kept_blocks == tuple(all_blocks(depth) for depth in depths), 'these repairs know of no removed blocks'
    if not batches:
        raise ValueError('there are no images to repair with.')
    room = Room(next(net.parameters()).device)
    stream = Stream(net, [batch.images for batch in batches], room)
    for i, depth in enumerate(depths):
        stream.enter_stage(i)
        for half in range(2 * depth):
            stream.run_to(half)
            yield stream
        stream.run_to(2 * depth)
        stream.leave_stage()


def _second_moment(x: Tensor) -> Tensor:
    """Of rows ``(..., F)`` with a column of ones, ``(F+1, F+1)`` float64."""
    rows = torch.cat([x, x.new_ones(*x.shape[:-1], 1)], dim=-1).flatten(0, -2)
    return sum((part.T @ part).double() for part in rows.split(4096))


def _ridge(gram: Tensor, moment: Tensor, ridge: float) -> Tensor:
    """``(gram + ridge * mean of its diagonal)^-1 moment``."""
    eye = torch.eye(len(gram)).to(gram)
    return torch.cholesky_solve(moment, torch.linalg.cholesky(gram + ridge * gram.diagonal().mean() * eye))
