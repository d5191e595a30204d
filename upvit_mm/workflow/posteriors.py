"""Build classifiers from state dicts, and evaluate them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from upvit_mm.arch import ArchSpec
from upvit_mm.checkpoints import check_state
from upvit_mm.data.image_set import ImageSet
from upvit_mm.models import build_backbone
from upvit_mm.pruning.full_precision import full_precision
from upvit_mm.pruning.importance import POSTERIOR
from upvit_mm.pruning.posterior import PosteriorNet
from upvit_mm.pruning.token_net import TokenNet


def build_net(arch: ArchSpec, state: dict[str, Tensor], device: str = 'cpu') -> PosteriorNet | TokenNet:
    """The network of a classifier's state dict, or of a backbone's if it has no head.

    Raises:
        ValueError: the state dict does not fit the architecture.
    """
    if 'head.fc.bias' in state:
        head = nn.Linear(arch.embed_dims[-1], len(state['head.fc.bias']))
        net = PosteriorNet(build_backbone(arch, out_indices=(-1,)), head)
    else:
        net = TokenNet(build_backbone(arch))
    weights = {k.replace('head.fc.', 'head.'): v for k, v in state.items()}
    check_state(weights, net.state_dict(), f'arch {arch.name or "custom"}')
    net.load_state_dict(weights)
    return net.to(device)


@torch.inference_mode()
@full_precision()
def judge(dense: PosteriorNet, pruned: PosteriorNet, images: ImageSet) -> dict[str, float]:
    """``kl``: mean over images of KL(dense || pruned); ``top1``: accuracy of the pruned network in %, with labels."""
    divergence, right, labelled = 0.0, 0, False  # they become tensors on the device; one look at the end
    for batch in images:
        p, q = (POSTERIOR.values(net(batch.images), batch) for net in (dense, pruned))
        divergence += (p.exp() * (p - q)).sum()
        if batch.labels is not None:
            labelled = True
            right += (q.argmax(dim=1) == batch.labels.to(q.device, non_blocking=True)).sum()
    POSTERIOR.require_finite(math.isfinite(divergence))
    results = {'kl': float(divergence) / len(images.numbers)}
    return results | ({'top1': 100 * int(right) / len(images.numbers)} if labelled else {})
