"""Attention heads in their principal axes: the same network, whose head channels can be cut off one by one.

The logits of a head depend only on ``Wq^T Wk`` and its output only on ``Wproj Wv``. So the channels of a head may be
replaced by any others with the same products. Here they become the singular directions of these products under the
second moments of what they see: tokens for queries, (spatially reduced) tokens for keys, attention-averaged tokens for
values; a column of ones carries the biases. Keeping the first r channels of a head is then its best approximation of
rank r, and any score can rank them. Shapes, costs, logit scales and outputs do not change. Rotary queries and keys stay
as they are, because their channels turn with the place. This is ours, not the paper's.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from upvit_mm.pruning.batch import Batch
from upvit_mm.pruning.full_precision import full_precision
from upvit_mm.pruning.table import BACKBONE, block_name
from upvit_mm.pruning.walk import Walk

AXES = 'both factors of one norm'  # in fingerprints of finished work: change it with what turn_heads gives
SMALLEST = 1e-8  # eigenvalue of a second moment, as a share of its largest: directions that no picture shows


class _Moments:
    """Second moments of what a block's attention sees, each with a last column of ones, float64 on its device.

    Attributes:
        queries, keys: ``(C+1, C+1)``.
        values: ``(h, C+1, C+1)``.
    """

    def __init__(self):
        self.queries = self.keys = self.values = torch.zeros(())  # a number may be added to tensors of any device

    def add(self, module: nn.Module, args: tuple) -> None:
        """A forward pre-hook of the block's attention."""
        x, grid = args
        seen = module.source(x, grid)  # (B, M, C)
        q, k = module.queries_and_keys(x, seen, grid)  # (B, h, n, K/h)
        ones = _with_ones(seen)[:, None].expand(-1, module.num_heads, -1, -1)  # (B, h, M, C+1)
        mixed = module.mix(q, k, ones, grid)  # (B, h, P+N, C+1)
        self.queries = self.queries + _second_moment(_with_ones(x).flatten(0, 1))
        self.keys = self.keys + _second_moment(_with_ones(seen).flatten(0, 1))
        self.values = self.values + torch.stack([_second_moment(head.flatten(0, 1)) for head in mixed.unbind(1)])


@torch.no_grad()
@full_precision()
def turn_heads(net: Walk, state: Mapping[str, Tensor], batches: Iterable[Batch]) -> dict[str, Tensor]:
    """The same network with every attention head in its principal axes.

    Args:
        net: the dense network.
        state: its tensors, ``backbone.*`` and others, which stay.
        batches: unlabelled pictures; each is read once.

    Returns:
        A new state dict of the same architecture and outputs. Channels of a head come in falling order of singular
        values; both factors of a channel have one norm, see ``_alike``.

    Raises:
        ValueError: no pictures.
    """
    turned = dict(state)
    for (i, j), moments in _moments_of(net, batches).items():
        name, heads = f'{BACKBONE}{block_name(i, j)}.attn', net.backbone.arch.num_heads[i][j]
        layers, device = 'v' if net.backbone.arch.kind.rotary else 'qkv', moments.queries.device
        rows = {layer: _joined(state, f'{name}.{layer}').to(device).chunk(heads) for layer in layers}  # each (d, C+1)
        if 'q' in rows:
            root_q, root_k = _roots(moments.queries), _roots(moments.keys)
            pairs = [_balanced(a, b, root_q, root_k) for a, b in zip(rows['q'], rows['k'])]
            rows['q'], rows['k'] = zip(*pairs)
        proj = state[f'{name}.proj.weight'].to(device).double().chunk(heads, 1)
        outs = [_output_factors(o, v, _roots(m)) for o, v, m in zip(proj, rows['v'], moments.values)]
        rows['v'] = [out[1] for out in outs]
        for layer, parts in rows.items():
            joined = torch.cat(list(parts)).to(state[f'{name}.{layer}.weight'])
            turned[f'{name}.{layer}.weight'] = joined[:, :-1].contiguous()
            turned[f'{name}.{layer}.bias'] = joined[:, -1].contiguous()
        turned[f'{name}.proj.weight'] = torch.cat([out[0] for out in outs], dim=1).to(state[f'{name}.proj.weight'])
    return turned


def _moments_of(net: Walk, batches: Iterable[Batch]) -> dict[tuple[int, int], _Moments]:
    """By stage and block."""
    arch, handles = net.backbone.arch, []
    moments = {(i, j): _Moments() for i, depth in enumerate(arch.depths) for j in range(depth)}
    try:
        for (i, j), sums in moments.items():
            attn = net.backbone.stages[i].blocks[j].attn
            handles.append(attn.register_forward_pre_hook(sums.add))
        for batch in batches:
            net(batch.images)
    finally:
        for handle in handles:
            handle.remove()
    seen = {place: sums for place, sums in moments.items() if sums.queries.ndim}
    if not seen:
        raise ValueError('there are no images: the principal axes of heads are those of what they see.')
    return seen


def _balanced(a: Tensor, b: Tensor, root_a: tuple[Tensor, Tensor], root_b: tuple[Tensor, Tensor]):
    """Rows ``(d, C+1)`` with the same ``a^T b`` as the given ones, of one norm, in singular directions under both
    moments."""
    (ra, ia), (rb, ib) = root_a, root_b
    qa, ta = torch.linalg.qr((a @ ra).T)  # (C+1, m), (m, d) with m = min(C+1, d)
    qb, tb = torch.linalg.qr((b @ rb).T)
    u, values, vh = torch.linalg.svd(ta @ tb.T)  # (m, m)
    scale = values.sqrt()
    rows = _alike((qa @ u * scale).T @ ia, (qb @ vh.T * scale).T @ ib)
    return tuple(_padded(own, len(a)) for own in rows)


def _output_factors(out: Tensor, v: Tensor, root: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Columns ``(C, d)`` and rows ``(d, C+1)`` with the same product as ``out`` and ``v``, of one norm, in singular
    directions."""
    r, inverse = root
    qo, to = torch.linalg.qr(out)
    qv, tv = torch.linalg.qr((v @ r).T)
    u, values, vh = torch.linalg.svd(to @ tv.T, full_matrices=False)
    scale = values.sqrt()
    columns, rows = _alike((qo @ u * scale).T, (qv @ vh.T * scale).T @ inverse)
    return _padded(columns, len(v)).T, _padded(rows, len(v))


def _alike(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Rows ``(m, n)`` and ``(m, n')`` with the same product row by row, of one norm in both.

    Singular directions alone leave a norm of one factor that falls with the number of pictures, and one of the other
    that rises. The outputs are the same, but a training is not: a step of Adam is as large for every weight, and it
    wiped out values whose norm was a 450th of their projection's.
    """
    norm_a, norm_b = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
    factor = torch.where((norm_a > 0) & (norm_b > 0), (norm_b / norm_a).sqrt(), 1.0)
    return a * factor, b / factor


def _padded(rows: Tensor, count: int) -> Tensor:
    """With rows of zeros: a head may have more channels than its product has directions."""
    return torch.cat([rows, rows.new_zeros(count - len(rows), rows.shape[1])])


def _roots(moment: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric root of a second moment and its inverse; directions that no picture shows count a little."""
    values, vectors = torch.linalg.eigh(moment)
    values = values.clamp(min=SMALLEST * float(values[-1])).sqrt()
    return (vectors * values) @ vectors.T, (vectors / values) @ vectors.T


def _joined(state: Mapping[str, Tensor], layer: str) -> Tensor:
    """Weight and bias of a layer as ``(out, in + 1)`` float64."""
    return torch.cat([state[f'{layer}.weight'], state[f'{layer}.bias'][:, None]], dim=1).double()


def _with_ones(x: Tensor) -> Tensor:
    return torch.cat([x, x.new_ones(*x.shape[:-1], 1)], dim=-1)


def _second_moment(rows: Tensor) -> Tensor:
    """``rows^T rows``, summed in double precision over parts."""
    return functools.reduce(torch.add, ((part.T @ part).double() for part in rows.split(4096)))
