"""Build classifiers from state dicts, and evaluate them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from upvit_mm.arch import ArchSpec
from upvit_mm.checkpoints import check_state
from upvit_mm.data.image_set import ImageSet
from upvit_mm.models import build_backbone
from upvit_mm.pruning.criteria import log_posteriors
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
def judge(dense: PosteriorNet, pruned: PosteriorNet, images: ImageSet) -> dict[str, float]:
    """``kl``: mean over images of KL(dense || pruned); ``top1``: accuracy of the pruned network in %, with labels."""
    divergence, right, labelled = 0.0, 0, False
    for batch in images:
        p, q = log_posteriors(dense(batch.images)), log_posteriors(pruned(batch.images))
        divergence += (p.exp() * (p - q)).sum().item()
        if batch.labels is not None:
            labelled = True
            right += int((q.argmax(dim=1).cpu() == batch.labels).sum())
    results = {'kl': divergence / len(images.numbers)}
    return results | ({'top1': 100 * right / len(images.numbers)} if labelled else {})
