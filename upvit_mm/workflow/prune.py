"""The pruning job: from a dense classifier to files that build anywhere."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from upvit_mm.arch import ArchSpec
from upvit_mm.checkpoints import check_state, load_classifier, save_checkpoint
from upvit_mm.data.image_set import ImageSet, held_out_set, proxy_set
from upvit_mm.files import sha256_of, write_text_atomically
from upvit_mm.models import UPDeiT, UPPVTv2
from upvit_mm.pruning import PrunePlan, plan_for_target, slice_state
from upvit_mm.pruning.baselines import magnitude_scores, random_scores
from upvit_mm.pruning.compensate import compensate
from upvit_mm.pruning.depth_scores import choose_blocks
from upvit_mm.pruning.importance import fisher_scores, kl_scores, log_posteriors
from upvit_mm.pruning.network import PosteriorNet
from upvit_mm.pruning.scores import load_scores, save_scores

logger = logging.getLogger('upvit_mm')
METHODS = ('fisher', 'kl', 'magnitude', 'random')
BACKBONES = {'deit': UPDeiT, 'pvtv2': UPPVTv2}


@dataclass(frozen=True)
class Settings:
    """How to prune.

    Attributes:
        method: of scoring, one of ``METHODS``.
        draws: backward passes an image (fisher).
        per_class: images of every class in the proxy set.
        head_policy, tie_qkv: see ``plan_for_target``.
        compensate: re-solve the linear layers after slicing.
        ridge: see ``compensate``.
        seed: of the proxy set and of what is random in the method.
        eval_images: held-out images on which the result is judged, at most.
        batch_size: images at once.
        max_rows: images x candidates at once (kl); bounds the memory.
        device: ``'cpu'`` or ``'cuda'``.
    """

    method: str = 'fisher'
    draws: int = 4
    per_class: int = 5
    head_policy: str = 'within'
    tie_qkv: bool = False
    compensate: bool = False
    ridge: float = 1e-3
    seed: int = 0
    eval_images: int = 1000
    batch_size: int = 32
    max_rows: int = 256
    device: str = 'cpu'

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(f'method = {self.method!r}: must be one of {", ".join(METHODS)}.')


@dataclass(frozen=True)
class Outcome:
    """What pruning did.

    Attributes:
        plan: what stayed.
        held_out: ``kl`` to the dense posteriors and ``top1`` in % on held-out images, for ``dense``, ``sliced`` and,
            if asked for, ``compensated``.
    """

    plan: PrunePlan
    held_out: dict[str, dict[str, float]]


def prune(cfg: Config, checkpoint: str, target: ArchSpec, work_dir: Path, settings: Settings) -> Outcome:
    """Score, plan, slice and, if asked for, compensate a dense classifier.

    Scores found in the work dir are used again when they were made from the same inputs.

    Args:
        cfg: mmpretrain config of the dense classifier: its backbone, head and data.
        checkpoint: its weights, in any layout that ``upvit_mm.checkpoints`` knows.
        target: architecture to reach.
        work_dir: gets ``proxy.txt``, ``scores.pt``, ``plan.json``, ``arch.json``, ``sliced.pth`` and ``report.json``.
        settings: how.

    Raises:
        FileNotFoundError: a missing checkpoint or data folder.
        ValueError: a checkpoint, target or image set that does not fit; the message says which and why.
    """
    init_default_scope('mmpretrain')
    source = ArchSpec.from_dict(cfg.model.backbone.arch)
    state = load_classifier(checkpoint)
    if 'head.fc.weight' not in state:
        raise ValueError(f'checkpoint {checkpoint!r} has no linear head; importance is measured on class posteriors.')
    dense = build_net(source, state, settings.device)
    proxy = proxy_set(cfg, settings.per_class, settings.seed, settings.batch_size)
    held_out = held_out_set(cfg, settings.eval_images, settings.seed, settings.batch_size)
    write_text_atomically(work_dir / 'proxy.txt', '\n'.join(proxy.paths) + '\n')

    def batches():
        return proxy.batches(settings.device)

    scores = _scores(dense, state, batches, work_dir, checkpoint, settings)
    blocks = None
    if target.depths != source.depths:
        blocks = choose_blocks(dense, batches, target.depths)
    plan = plan_for_target(source, target, scores, settings.head_policy, settings.tie_qkv, blocks)
    plan.meta.update(tool='prune', settings=asdict(settings), checkpoint=str(checkpoint), sha256=sha256_of(checkpoint))
    plan.save(work_dir / 'plan.json')

    sliced_state = slice_state(state, plan)
    sliced = build_net(plan.target_arch, sliced_state, settings.device)
    results = {'dense': judge(dense, dense, held_out, settings.device)}
    results['sliced'] = judge(dense, sliced, held_out, settings.device)
    if settings.compensate:
        compensate(dense, sliced, plan, batches, settings.ridge)
        results['compensated'] = judge(dense, sliced, held_out, settings.device)
        sliced_state = {f'backbone.{k}': v for k, v in sliced.backbone.state_dict().items()}
        sliced_state |= {f'head.fc.{k}': v for k, v in sliced.head.state_dict().items()}
    plan.target_arch.save_json(work_dir / 'arch.json')
    save_checkpoint(work_dir / 'sliced.pth', sliced_state, arch=plan.target_arch.to_dict(), **plan.meta)
    report = json.dumps({'held_out': results, 'images': len(held_out.numbers), **plan.meta}, indent=2) + '\n'
    write_text_atomically(work_dir / 'report.json', report)
    return Outcome(plan, results)


def build_net(arch: ArchSpec, state: dict[str, Tensor], device: str = 'cpu') -> PosteriorNet:
    """The network of a classifier's state dict.

    Raises:
        ValueError: the state dict does not fit the architecture.
    """
    head = nn.Linear(arch.embed_dims[-1], len(state['head.fc.bias']))
    net = PosteriorNet(BACKBONES[arch.family](arch, out_indices=(-1,)), head)
    weights = {k.replace('head.fc.', 'head.'): v for k, v in state.items()}
    check_state(weights, net.state_dict(), f'arch {arch.name or "custom"}')
    net.load_state_dict(weights)
    return net.to(device)


@torch.inference_mode()
def judge(dense: PosteriorNet, pruned: PosteriorNet, images: ImageSet, device: str) -> dict[str, float]:
    """``kl``: mean over images of KL(dense || pruned); ``top1``: accuracy of the pruned network in %."""
    divergence, right = 0.0, 0
    for batch, numbers in images.batches(device):
        p, q = log_posteriors(dense(batch)), log_posteriors(pruned(batch))
        divergence += (p.exp() * (p - q)).sum().item()
        right += int((q.argmax(dim=1).cpu().numpy() == images.labels[numbers]).sum())
    return {'kl': divergence / len(images.numbers), 'top1': 100 * right / len(images.numbers)}


def _scores(dense, state, batches, work_dir: Path, checkpoint: str, settings: Settings) -> dict[str, Tensor]:
    arch, path = dense.backbone.arch, work_dir / 'scores.pt'
    decisive = [
        settings.method,
        settings.draws,
        settings.per_class,
        settings.seed,
        arch.to_dict(),
        sha256_of(checkpoint),
    ]
    decisive.append(sha256_of(work_dir / 'proxy.txt'))
    inputs = hashlib.sha256(json.dumps(decisive).encode()).hexdigest()
    if path.is_file():
        scores, meta = load_scores(path, arch)
        if meta.get('inputs') == inputs:
            logger.info('%s: scored before from the same inputs', path)
            return scores
    if settings.method == 'fisher':
        scores = fisher_scores(dense, batches(), draws=settings.draws, seed=settings.seed)
    elif settings.method == 'kl':
        scores = kl_scores(dense, batches(), max_rows=settings.max_rows)
    elif settings.method == 'magnitude':
        scores = magnitude_scores(arch, state)
    else:
        scores = random_scores(arch, settings.seed)
    save_scores(path, scores, arch, method=settings.method, inputs=inputs)
    return scores
