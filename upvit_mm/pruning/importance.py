"""How important each channel is: the exact KL score of the paper, much cheaper estimates, and baselines.

Scores are means over images, in float64, higher = keep. Every channel is scored alone, in the unpruned network. Each
method is a function of one batch; it returns sums over its images, dim by dim. So the work can be shared among
processes, stopped and resumed (``shared_work.py``). ``methods.py`` lists the methods.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from upvit_mm.pruning.dims import PrunableDim, prunable_dims
from upvit_mm.pruning.gates import gates
from upvit_mm.pruning.posterior import Entry, PosteriorNet

Scores = dict[str, Tensor]  # dim name -> (size,)
Channels = Mapping[str, Tensor]  # dim name -> channels to score, int64
Report = Callable[[str, float], None]  # dim kind, channels x images done
Sums = Iterator[tuple[str, Tensor]]  # dim name, sums over the images of a batch (size,)


class Batch(NamedTuple):
    """Images of the proxy set.

    Attributes:
        images: ``(B, 3, h, w)``.
        numbers: number of each image in its data set.
        labels: ``(B,)`` int64, or None where they are not known.
        sizes: ``(height, width)`` of each image in pixels before padding; None = none is padded.
    """

    images: Tensor
    numbers: Sequence[int]
    labels: Tensor | None = None
    sizes: Sequence[tuple[int, int]] | None = None


def select_dims(net: PosteriorNet, names: Iterable[str] | None) -> list[PrunableDim]:
    """The network's dims of these names, in the order of the network; None selects all.

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


def kl_scores(net: PosteriorNet, batches: Iterable[Batch], names: Iterable[str] | None = None, **settings) -> Scores:
    """Means of ``kl_sums`` over all images; ``names`` as in ``select_dims``."""
    channels = {dim.name: torch.arange(dim.size) for dim in select_dims(net, names)}
    return mean_scores(net, batches, list(channels), partial(kl_sums, channels=channels, **settings))


def fisher_scores(
    net: PosteriorNet, batches: Iterable[Batch], names: Iterable[str] | None = None, **settings
) -> Scores:
    """Means of ``fisher_sums`` over all images; ``names`` as in ``select_dims``."""
    names = [dim.name for dim in select_dims(net, names)]
    return mean_scores(net, batches, names, partial(fisher_sums, channels=names, **settings))


def taylor_scores(net: PosteriorNet, batches: Iterable[Batch], names: Iterable[str] | None = None) -> Scores:
    """Means of ``taylor_sums`` over all images; ``names`` as in ``select_dims``."""
    names = [dim.name for dim in select_dims(net, names)]
    return mean_scores(net, batches, names, partial(taylor_sums, channels=names))


@torch.inference_mode()
def kl_sums(
    net: PosteriorNet, batch: Batch, channels: Channels, max_rows: int = 256, report: Report | None = None
) -> Sums:
    """Sum over images of ``KL(p || p without the channel)``, temperature 1 (UP-ViTs, eq. 1).

    The dense network runs once. Every candidate then starts from the activation before the first layer that it changes.
    Many candidates run as one batch.

    Args:
        net: the dense classifier.
        batch: of the proxy set.
        channels: which channels of which dims; the sums of others are 0.
        max_rows: candidates x images that run at once; limits the memory.
        report: called after each run.

    Raises:
        ValueError: an unknown dim, or posteriors that are not finite.
    """
    dims = select_dims(net, channels)
    passed, logits = net.activations(batch.images)
    reference = log_posteriors(logits)
    step = max(1, max_rows // len(batch.images))
    for dim in dims:
        x, grid = passed[Entry.of(dim)]
        sums = torch.zeros(dim.size, dtype=torch.float64)
        for part in channels[dim.name].split(step):
            divergences = _kl_without(net, dim, part, x, grid, reference)  # (K, B)
            sums[part] = divergences.sum(dim=1).cpu()
            if report:
                report(dim.kind, divergences.numel())
        yield dim.name, sums


def _kl_without(net, dim: PrunableDim, channels: Tensor, x: Tensor, grid, reference: Tensor) -> Tensor:
    """KL of each image ``(B)`` for each of ``K`` channels removed alone: ``(K, B)`` float64."""
    num, batch = len(channels), len(x)
    gate = x.new_ones(num, batch, dim.size)
    gate[torch.arange(num), :, channels] = 0
    with gates(net.backbone, {dim.name: gate.flatten(0, 1)[:, None]}):  # (K*B, 1, size)
        logits = net.resume(Entry.of(dim), x.repeat(num, *[1] * (x.ndim - 1)), grid)
    pruned = log_posteriors(logits).unflatten(0, (num, batch))  # (K, B, classes)
    return (reference.exp() * (reference - pruned)).sum(dim=-1)


def fisher_sums(
    net: PosteriorNet,
    batch: Batch,
    channels: Iterable[str] | None = None,
    draws: int = 4,
    seed: int = 0,
    report: Report | None = None,
) -> Sums:
    """Estimate of ``kl_sums`` for every channel of every dim from ``draws`` backward passes.

    At the dense network KL has no first-order term in the gates, so the score of a channel is half its diagonal Fisher
    information, ``1/2 E_k[(d log p_k / d gate)^2]``. One backward pass of ``sum_k e_k sqrt(p_k) log p_k`` with random
    signs ``e`` gives each gate a gradient. Its square has exactly that expectation, because the signs are independent.

    Args:
        net: the dense classifier.
        batch: of the proxy set; an image's signs depend only on ``seed`` and its number.
        channels: dims to score, with all channels of each; None = all dims. The cost is the same.
        draws: backward passes per image, at least 1; the error falls with the square root of it.
        seed: of the signs.
        report: called after each backward pass.

    Raises:
        ValueError: an unknown dim, fewer than 1 draw, or posteriors that are not finite.
    """
    if draws < 1:
        raise ValueError(f'draws = {draws}: at least 1 backward pass is needed.')
    dims = select_dims(net, channels)
    leaves, log_p = _gated_posteriors(net, batch)
    weights = log_p.detach().exp().sqrt()
    signs = _signs(batch.numbers, draws, log_p.shape[1], seed).to(log_p)  # (draws, B, classes)
    sums = {dim.name: torch.zeros(dim.size, dtype=torch.float64, device=log_p.device) for dim in dims}
    for draw in range(draws):
        target = (signs[draw] * weights * log_p).sum()
        gradients = torch.autograd.grad(target, list(leaves.values()), retain_graph=draw + 1 < draws)
        by_dim = dict(zip(leaves, gradients))
        for dim in dims:
            gradient = by_dim[dim.name][:, 0]  # (B, size)
            sums[dim.name] += 0.5 / draws * gradient.double().square().sum(dim=0)
            if report:
                report(dim.kind, gradient.numel() / draws)
    yield from ((name, values.cpu()) for name, values in sums.items())


def taylor_sums(
    net: PosteriorNet, batch: Batch, channels: Iterable[str] | None = None, report: Report | None = None
) -> Sums:
    """First-order baseline: sum over images of ``|d cross entropy / d gate|`` (arXiv 1905.10650, eq. 2).

    It needs labels; where they are not known, it uses the network's own predictions. ``channels`` as in
    ``fisher_sums``.

    Raises:
        ValueError: an unknown dim, or posteriors that are not finite.
    """
    dims = select_dims(net, channels)
    leaves, log_p = _gated_posteriors(net, batch)
    labels = log_p.argmax(dim=1) if batch.labels is None else batch.labels.to(log_p.device)
    gradients = torch.autograd.grad(F.nll_loss(log_p, labels, reduction='sum'), list(leaves.values()))
    by_dim = dict(zip(leaves, gradients))
    for dim in dims:
        gradient = by_dim[dim.name][:, 0]  # (B, size)
        if report:
            report(dim.kind, gradient.numel())
        yield dim.name, gradient.double().abs().sum(dim=0).cpu()


def _gated_posteriors(net: PosteriorNet, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
    """Gates of each image as leaves ``(B, 1, size)`` by dim, and log posteriors ``(B, classes)`` that depend on them.

    All dims get gates, even if only some are asked for: without some gates the other results would be rounded
    differently.
    """
    dims = prunable_dims(net.backbone.arch).values()
    leaves = {dim.name: batch.images.new_ones(len(batch.images), 1, dim.size, requires_grad=True) for dim in dims}
    with torch.enable_grad(), gates(net.backbone, leaves):
        return leaves, log_posteriors(net(batch.images))


def log_posteriors(logits: Tensor) -> Tensor:
    """``log softmax`` in float64, whatever the network's precision: scores of 1e-8 are differences of these values.

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
        mixed = zlib.crc32(f'{seed} {int(number)}'.encode())  # torch's generator on a CPU uses only 32 bits of a seed
        generator = torch.Generator().manual_seed(mixed)
        signs.append(torch.randint(0, 2, (draws, classes), generator=generator) * 2 - 1)
    return torch.stack(signs, dim=1)


def mean_scores(
    net: PosteriorNet, batches: Iterable[Batch], names: Sequence[str], sums_of: Callable[[PosteriorNet, Batch], Sums]
) -> Scores:
    """Means over all images, in one process and in memory.

    Raises:
        ValueError: no images; whatever ``sums_of`` raises.
    """
    dims = prunable_dims(net.backbone.arch)
    totals = {name: torch.zeros(dims[name].size, dtype=torch.float64) for name in names}
    count = 0
    for batch in batches:
        for name, sums in sums_of(net, batch):
            totals[name] += sums
        count += len(batch.images)
    if count == 0:
        raise ValueError('the proxy set has no images; nothing can be scored.')
    return {name: total / count for name, total in totals.items()}
