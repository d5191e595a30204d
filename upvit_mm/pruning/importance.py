"""How much each channel matters: the exact KL score of the paper, and an estimate of it a thousand times cheaper.

Scores are means over images, in float64, higher = keep; every channel is judged alone, in the unpruned network.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from upvit_mm.pruning.dims import PrunableDim, prunable_dims
from upvit_mm.pruning.gates import gates
from upvit_mm.pruning.network import Entry, PosteriorNet

Scores = dict[str, Tensor]  # dim name -> (size,)
Batch = tuple[Tensor, Sequence[int]]  # images (B, 3, h, w), and the number of each in the proxy set
Report = Callable[[str, int], None]  # dim kind, channels x images done


def select_dims(net: PosteriorNet, names: Iterable[str] | None) -> list[PrunableDim]:
    """The network's dims of these names, in its order; None selects all.

    Raises:
        ValueError: a name that the network does not have.
    """
    dims = prunable_dims(net.backbone.arch)
    if names is None:
        return list(dims.values())
    names = set(names)
    if unknown := names - set(dims):
        raise ValueError(f'dim {sorted(unknown)[0]!r}: the network has {", ".join(list(dims)[:5])}, ...')
    return [dim for dim in dims.values() if dim.name in names]


@torch.inference_mode()
def kl_scores(
    net: PosteriorNet,
    batches: Iterable[Batch],
    names: Iterable[str] | None = None,
    max_rows: int = 256,
    report: Report | None = None,
) -> Scores:
    """Mean over images of ``KL(p || p without the channel)``, temperature 1 (UP-ViTs, eq. 1).

    The dense network runs once a batch. Every candidate then starts from the activation in front of the first layer
    that it changes, and many candidates run as one batch.

    Args:
        net: the dense classifier.
        batches: the proxy set.
        names: dims to score; None scores all.
        max_rows: candidates x images that run at once; bounds the memory.
        report: called after each run.

    Raises:
        ValueError: an unknown dim, no images, or posteriors that are not finite.
    """
    dims = select_dims(net, names)
    sums = {dim.name: torch.zeros(dim.size, dtype=torch.float64) for dim in dims}
    count = 0
    for images, _ in batches:
        passed, logits = net.activations(images)
        reference = log_posteriors(logits)
        for dim in dims:
            x, grid = passed[Entry.of(dim)]
            step = max(1, max_rows // len(images))
            for start in range(0, dim.size, step):
                channels = range(start, min(start + step, dim.size))
                divergences = _kl_without(net, dim, channels, x, grid, reference)  # (K, B)
                sums[dim.name][start : channels.stop] += divergences.sum(dim=1).cpu()
                if report:
                    report(dim.kind, divergences.numel())
        count += len(images)
    return _means(sums, count)


def _kl_without(net, dim: PrunableDim, channels: range, x: Tensor, grid, reference: Tensor) -> Tensor:
    """KL of each image ``(B)`` for each of ``K`` channels removed alone: ``(K, B)`` float64."""
    num, batch = len(channels), len(x)
    gate = x.new_ones(num, batch, dim.size)
    gate[torch.arange(num), :, torch.tensor(channels)] = 0
    with gates(net.backbone, {dim.name: gate.flatten(0, 1)[:, None]}):  # (K*B, 1, size)
        logits = net.resume(Entry.of(dim), x.repeat(num, *[1] * (x.ndim - 1)), grid)
    pruned = log_posteriors(logits).unflatten(0, (num, batch))  # (K, B, classes)
    return (reference.exp() * (reference - pruned)).sum(dim=-1)


def fisher_scores(
    net: PosteriorNet,
    batches: Iterable[Batch],
    names: Iterable[str] | None = None,
    draws: int = 4,
    seed: int = 0,
    report: Report | None = None,
) -> Scores:
    """Estimate of ``kl_scores`` for every channel of every dim from ``draws`` backward passes.

    At the dense network KL has no first-order term in the gates, so the score of a channel is half its diagonal Fisher
    information, ``1/2 E_k[(d log p_k / d gate)^2]``. One backward pass of ``sum_k e_k sqrt(p_k) log p_k`` with random
    signs ``e`` gives each gate a gradient whose square has just that expectation, as the signs are independent.

    Args:
        net: the dense classifier.
        batches: the proxy set; an image's signs depend on ``seed`` and its number alone.
        names: dims to score; None scores all. Costs are the same.
        draws: backward passes an image, at least 1; the error falls with its square root.
        seed: of the signs.
        report: called after each backward pass.

    Raises:
        ValueError: an unknown dim, no images, fewer than 1 draw, or posteriors that are not finite.
    """
    if draws < 1:
        raise ValueError(f'draws = {draws}: at least 1 backward pass is needed.')
    dims = select_dims(net, names)
    sums = {dim.name: torch.zeros(dim.size, dtype=torch.float64) for dim in dims}
    count = 0
    for images, numbers in batches:
        leaves = {dim.name: images.new_ones(len(images), 1, dim.size, requires_grad=True) for dim in dims}
        with torch.enable_grad(), gates(net.backbone, leaves):
            logits = net(images)
        log_p = log_posteriors(logits)
        weights = log_p.detach().exp().sqrt()
        signs = _signs(numbers, draws, log_p.shape[1], seed).to(log_p)  # (draws, B, classes)
        for draw in range(draws):
            target = (signs[draw] * weights * log_p).sum()
            gradients = torch.autograd.grad(target, list(leaves.values()), retain_graph=draw + 1 < draws)
            for dim, gradient in zip(dims, gradients):
                sums[dim.name] += 0.5 / draws * gradient[:, 0].double().square().sum(dim=0).cpu()
                if report:
                    report(dim.kind, gradient[:, 0].numel())
        count += len(images)
    return _means(sums, count)


def log_posteriors(logits: Tensor) -> Tensor:
    """``log softmax`` in float64, whatever the network's precision: scores of 1e-8 are differences of its values.

    Raises:
        ValueError: NaN or Inf.
    """
    if not torch.isfinite(logits).all():
        raise ValueError('logits of the network are not finite; check the checkpoint and the preprocessing.')
    return F.log_softmax(logits.double(), dim=-1)


def _signs(numbers: Sequence[int], draws: int, classes: int, seed: int) -> Tensor:
    """``(draws, B, classes)`` of +-1."""
    signs = []
    for number in numbers:
        mixed = zlib.crc32(f'{seed} {int(number)}'.encode())  # torch's generator on a CPU looks at 32 bits of a seed
        generator = torch.Generator().manual_seed(mixed)
        signs.append(torch.randint(0, 2, (draws, classes), generator=generator) * 2 - 1)
    return torch.stack(signs, dim=1)


def _means(sums: Scores, count: int) -> Scores:
    if count == 0:
        raise ValueError('the proxy set has no images; nothing can be scored.')
    return {name: total / count for name, total in sums.items()}
