"""Classifiers that the jobs run: built from state dicts, and judged."""

from __future__ import annotations

import resource

import torch
from mmengine.config import Config
from torch import Tensor, nn

from upvit_mm.arch import ArchSpec
from upvit_mm.checkpoints import check_state
from upvit_mm.data.image_set import ImageSet
from upvit_mm.models import UPDeiT, UPPVTv2
from upvit_mm.pruning.importance import log_posteriors
from upvit_mm.pruning.network import PosteriorNet

BACKBONES = {'deit': UPDeiT, 'pvtv2': UPPVTv2}


def check_readout(cfg: Config, family: str) -> None:
    """Refuse a classifier that ``PosteriorNet`` is not: it would score another network than the config's.

    Raises:
        ValueError: which setting is another, and what it must be.
    """
    model = cfg.model
    neck, backbone = (model.get('neck') or {}).get('type'), model.backbone
    if family == 'deit':
        out_type = backbone.get('out_type', 'featmap')
        if out_type != 'cls_token' or neck:
            raise ValueError(
                f'model.backbone.out_type = {out_type!r}, model.neck = {neck!r}: the head of a DeiT must read the '
                "class token here; set out_type='cls_token' and no neck."
            )
        if backbone.get('window_size'):
            raise ValueError(
                f'model.backbone.window_size = {backbone.window_size}: importance is measured with global attention; '
                'leave it out, and give the windows of your detector to the budget (--window-size).'
            )
    elif str(neck).rpartition('.')[2] != 'GlobalAveragePooling':
        raise ValueError(
            f'model.neck = {neck!r}: the head of a PVTv2 must read the mean over tokens; set '
            "neck=dict(type='GlobalAveragePooling')."
        )


def build_net(arch: ArchSpec, state: dict[str, Tensor], device: str = 'cpu') -> PosteriorNet:
    """The network of a classifier's state dict, or of a backbone's when there is no head in it.

    Raises:
        ValueError: the state dict does not fit the architecture.
    """
    head = None
    if 'head.fc.bias' in state:
        head = nn.Linear(arch.embed_dims[-1], len(state['head.fc.bias']))
    net = PosteriorNet(BACKBONES[arch.family](arch, out_indices=(-1,)), head)
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


def peak_memory(device: str) -> int:
    """Bytes that this process has held at most, on its GPU or on the host."""
    if device.startswith('cuda'):
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB
