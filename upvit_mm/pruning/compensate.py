"""Compensation: re-solving the linear layers of a sliced network so that it follows the dense one.

Front to back, each ``attn.proj`` and ``mlp.fc2`` and at last the head is corrected by ridge regression on unlabelled
images: from the layer's input in the sliced network (whose earlier layers are already corrected) to what still lacks
for the dense residual stream on the kept channels. In a classifier with a class token, which is all that its head
reads, that token counts as much as all patches together. Branches that a plan removes are part of what lacks, so the
layer in front of them makes up for them too. Convolutions (PVTv2's patch embeddings, spatial reductions and
depth-wise filters) and norms stay as sliced; what they get wrong is corrected by the next linear layer after them.

This is ours, not the paper's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from upvit_mm.pruning.depth import branches
from upvit_mm.pruning.importance import Batch
from upvit_mm.pruning.plan import PrunePlan
from upvit_mm.pruning.posterior import Entry, PosteriorNet
from upvit_mm.pruning.table import stage_name

logger = logging.getLogger('upvit_mm')
Report = Callable[[str, float], None]  # layer, share of the lack that is left


@torch.no_grad()
def compensate(
    dense: PosteriorNet,
    sliced: PosteriorNet,
    plan: PrunePlan,
    batches: Sequence[Batch],
    ridge: float = 1e-2,
    report: Report | None = None,
) -> None:
    """Correct a sliced network in place.

    Args:
        dense: the network that was sliced, with its head or without.
        sliced: the network of ``plan.target_arch``.
        plan: what was kept.
        batches: unlabelled images; they are gone through once a layer, so that memory does not depend on their
            number.
        ridge: weight of the change's square, in units of the mean square of the layer's input.
        report: called after each layer with the remaining mean square of what lacks, by the one before.

    Raises:
        ValueError: networks that are not the plan's, no images, or ``ridge`` not above 0.
    """
    if not ridge > 0:
        raise ValueError(
            f'ridge = {ridge}: must be above 0, or a layer with more inputs than tokens has no one solution.'
        )
    for net, arch, name in ((dense, plan.source_arch, 'dense'), (sliced, plan.target_arch, 'sliced')):
        if net.backbone.arch != arch:
            raise ValueError(f'the {name} network has another architecture than the plan.')
    for i, pairs in enumerate(plan.kept_blocks):
        kept = plan.kept[f'{stage_name(i)}.embed']
        sequence = [2 * block + (kind == 'mlp') for kind, block in branches(pairs)]
        after = [*sequence[1:], 2 * plan.source_arch.depths[i]]  # the dense stream in front of the next kept branch
        for half, dense_half in enumerate(after):
            block = sliced.backbone.stages[i].blocks[half // 2]
            layer = block.mlp.fc2 if half % 2 else block.attn.proj
            lack = partial(_stream_lack, entry=Entry(i, half + 1), target=Entry(i, dense_half), kept=kept)
            _correct(layer, dense, sliced, batches, lack, ridge, report, f'{stage_name(i)}.{half}')
    if sliced.head is not None:
        _correct(sliced.head, dense, sliced, batches, None, ridge, report, 'head')


def _stream_lack(ours: dict, theirs: dict, entry: Entry, target: Entry, kept: Tensor) -> Tensor:
    """What the sliced network's stream at ``entry`` lacks for the dense one's kept channels at ``target``."""
    stream, reference = ours[entry][0], theirs[target][0]  # (B, n, C), (B, n, dense C)
    return reference.index_select(2, kept.to(reference.device)) - stream


def _correct(
    layer: nn.Linear,
    dense: PosteriorNet,
    sliced: PosteriorNet,
    batches: Sequence[Batch],
    lack: Callable[[dict, dict], Tensor] | None,
    ridge: float,
    report: Report | None,
    name: str,
) -> None:
    """Add to a layer the ridge solution of ``input @ change = lack``; ``lack`` None means that of the logits."""
    size = layer.in_features + 1  # with a column of ones for the bias
    gram = torch.zeros(size, size, dtype=torch.float64)
    moment = torch.zeros(size, layer.out_features, dtype=torch.float64)
    rows, square = 0, 0.0
    inputs: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda module, args: inputs.append(args[0].detach().clone()))
    try:
        for images, *_ in batches:
            inputs.clear()
            ours, logits = sliced.activations(images)
            theirs, reference = dense.activations(images)
            missing = reference - logits if lack is None else lack(ours, theirs)
            weights = _token_weights(inputs[0], sliced)
            missing = missing.double().cpu().flatten(0, -2) * weights  # (rows, out)
            x = inputs[0].double().cpu().flatten(0, -2)
            x = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], dim=1) * weights  # (rows, in + 1)
            gram += x.T @ x
            moment += x.T @ missing
            rows, square = rows + len(x), square + missing.square().sum().item()
    finally:
        handle.remove()
    if rows == 0:
        raise ValueError('there are no images to compensate with.')
    if rows < 2 * size:
        logger.warning(
            'compensation of %s has %d samples for %d inputs and may fit them alone; use more images.', name, rows, size
        )
    change = torch.linalg.solve(gram + ridge * gram.diagonal().mean() * torch.eye(size, dtype=gram.dtype), moment)
    layer.weight += change[:-1].T.to(layer.weight)
    layer.bias += change[-1].to(layer.bias)
    if report:
        explained = (2 * (change * moment).sum() - (change * (gram @ change)).sum()).item()
        report(name, 1 - explained / square if square else 0.0)


def _token_weights(x: Tensor, net: PosteriorNet) -> Tensor:
    """Root of the weight of every row: ``(rows, 1)`` float64 for tokens ``(B, P+N, C)`` or vectors ``(B, C)``."""
    weights = torch.ones(x.shape[:-1], dtype=torch.float64)
    prefix = net.backbone.num_prefix_tokens
    if net.head is not None and prefix and x.ndim == 3 and x.shape[1] > prefix:
        weights[:, :prefix] = ((x.shape[1] - prefix) / prefix) ** 0.5
    return weights.flatten()[:, None]
