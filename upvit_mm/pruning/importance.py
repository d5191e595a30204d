"""How important each channel is: the exact score of the paper, a much cheaper estimate, and a baseline.

Scores are means over images, in float64, higher = keep. Every channel is scored alone, in the unpruned network; those
that only go together (``PrunableDim.paired``) are scored together, and each gets its share. Each method is a function
of one batch; it returns sums over its images, dim by dim. So the work can be shared among processes, stopped and
resumed (``shared_work.py``). ``methods.py`` lists the methods.

Sums stay on the network's device until they are complete: to look at a number means to wait for a GPU.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from upvit_mm.pruning.batch import Batch
from upvit_mm.pruning.criteria import Criterion, Posterior
from upvit_mm.pruning.dims import PrunableDim, prunable_dims
from upvit_mm.pruning.full_precision import full_precision
from upvit_mm.pruning.walk import Entry, Walk

Scores = dict[str, Tensor]  # dim name -> (size,)
Channels = Mapping[str, Tensor]  # dim name -> channels to score, int64
Report = Callable[[str, float], None]  # dim kind, channels x images done
POSTERIOR = Posterior()
AUTOCAST = {'bf16': torch.bfloat16}  # of ``choices.PRECISIONS``; float16 has no room for small gradients
Sums = Iterator[tuple[str, Tensor]]  # dim name, sums over the images of a batch (size,)


def select_dims(net: Walk, names: Iterable[str] | None) -> list[PrunableDim]:
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


def exact_scores(net: Walk, batches: Iterable[Batch], names: Iterable[str] | None = None, **settings) -> Scores:
    """Means of ``exact_sums`` over all images; ``names`` as in ``select_dims``."""
    channels = {dim.name: torch.arange(dim.size) for dim in select_dims(net, names)}
    return mean_scores(net, batches, list(channels), partial(exact_sums, channels=channels, **settings))


def fisher_scores(net: Walk, batches: Iterable[Batch], names: Iterable[str] | None = None, **settings) -> Scores:
    """Means of ``fisher_sums`` over all images; ``names`` as in ``select_dims``."""
    names = [dim.name for dim in select_dims(net, names)]
    return mean_scores(net, batches, names, partial(fisher_sums, channels=names, **settings))


def taylor_scores(net: Walk, batches: Iterable[Batch], names: Iterable[str] | None = None) -> Scores:
    """Means of ``taylor_sums`` over all images; ``names`` as in ``select_dims``."""
    names = [dim.name for dim in select_dims(net, names)]
    return mean_scores(net, batches, names, partial(taylor_sums, channels=names))


@torch.inference_mode()
def exact_sums(
    net: Walk,
    batch: Batch,
    channels: Channels,
    criterion: Criterion = POSTERIOR,
    max_rows: int = 256,
    report: Report | None = None,
) -> Sums:
    """Sum over images of the criterion's distance between the dense network and the network without the channel.

    With ``Posterior`` that is ``KL(p || p without the channel)`` (UP-ViTs, eq. 1).

    The dense network runs once. Every candidate then starts from the activation before the first layer that it changes.
    Many candidates run as one batch.

    Args:
        net: the dense network that the criterion needs.
        batch: of the proxy set.
        channels: which channels of which dims; the sums of others are 0.
        criterion: what is measured.
        max_rows: candidates x images that run at once; limits the memory.
        report: called after each run.

    Raises:
        ValueError: an unknown dim, or outputs that are not finite.
    """
    dims, device = select_dims(net, channels), batch.images.device
    with full_precision():
        passed, outputs = net.activations(batch.images)
        reference = criterion.values(outputs, batch)
    finite = torch.isfinite(reference).all()
    step = max(1, max_rows // len(batch.images))
    for dim in dims:
        sums = torch.zeros(dim.size, dtype=torch.float64, device=device)
        wanted = channels[dim.name].to(device, non_blocking=True)
        for part in wanted.split(step) if Entry.of(dim) in passed else ():
            with full_precision():
                values = _values_without(net, dim, part, passed[Entry.of(dim)], batch, criterion)  # (K, B, d)
                distances = criterion.distance(reference, values)
            sums[part] = distances.sum(dim=1).double() / dim.unit
            if report:
                report(dim.kind, distances.numel())
        yield from on_host({dim.name: sums}, finite, criterion).items()


def _values_without(
    net: Walk, dim: PrunableDim, channels: Tensor, start: tuple, batch: Batch, criterion: Criterion
) -> Tensor:
    """The criterion's values with each of ``K`` channels removed alone, ``(K, B, d)``."""
    x, grid = start
    num, size = len(channels), len(x)
    gate = x.new_ones(num, size, dim.size)
    partners = _partners(dim, x.device)[channels] if dim.paired else channels
    for gone in (channels, partners):
        gate.scatter_(2, gone[:, None, None].expand(-1, size, -1), 0)
    with net.gated({dim.name: gate.flatten(0, 1)[:, None]}):  # (K*B, 1, size)
        outputs = net.resume(Entry.of(dim), x.repeat(num, *[1] * (x.ndim - 1)), grid)
    return criterion.values(outputs, batch.repeated(num)).unflatten(0, (num, size))


def fisher_sums(
    net: Walk,
    batch: Batch,
    channels: Iterable[str] | None = None,
    criterion: Criterion = POSTERIOR,
    draws: int = 4,
    seed: int = 0,
    amp: str | None = None,
    report: Report | None = None,
) -> Sums:
    """Estimate of ``exact_sums`` for every channel of every dim from ``draws`` backward passes.

    At the dense network the criterion's distance has no first-order term in the gates. To second order it is
    ``factor * sum_k (w_k d v_k / d gate)^2`` with the criterion's values ``v`` and weights ``w``; for posteriors that
    is half the diagonal Fisher information. One backward pass of ``sum_k e_k w_k v_k`` with random signs ``e`` gives
    each gate a gradient. Its square has exactly that expectation, because the signs are independent.

    Args:
        net: the dense network that the criterion needs.
        batch: of the proxy set; an image's signs depend only on ``seed``, its number and whether a GPU draws them.
        channels: dims to score, with all channels of each; None = all dims. The cost is the same.
        criterion: what is measured.
        draws: backward passes per image, at least 1; the error falls with the square root of it.
        seed: of the signs.
        amp: lower precision of the passes, see ``AUTOCAST``; values, signs and sums stay in float32 or better.
        report: called after each backward pass.

    Raises:
        ValueError: an unknown dim, fewer than 1 draw, or outputs that are not finite.
    """
    if draws < 1:
        raise ValueError(f'draws = {draws}: at least 1 backward pass is needed.')
    dims = select_dims(net, channels)
    leaves, values = _gated_values(net, batch, criterion, amp)
    weights = criterion.weights(values)
    draws = draws if values.shape[1] > 1 else 1  # the square of a single gradient does not depend on the sign
    signs = _signs(batch.numbers, draws, values.shape[1], seed, values.device)  # (draws, B, D)
    sums = {dim.name: torch.zeros(dim.size, dtype=torch.float64, device=values.device) for dim in dims}
    for draw in range(draws):
        target = (signs[draw] * weights * values).sum()
        by_dim = _gradients(target, leaves, keep=draw + 1 < draws)
        for dim in dims:
            gradient = _of_joint_gates(by_dim[dim.name], dim)
            sums[dim.name] += criterion.factor / draws * gradient.double().square().sum(dim=0) / dim.unit
            if report:
                report(dim.kind, gradient.numel() / draws)
    yield from on_host(sums, torch.isfinite(values).all(), criterion).items()


def taylor_sums(net: Walk, batch: Batch, channels: Iterable[str] | None = None, report: Report | None = None) -> Sums:
    """First-order baseline: sum over images of ``|d cross entropy / d gate|`` (arXiv 1905.10650, eq. 2).

    It needs labels; where they are not known, it uses the network's own predictions. ``channels`` as in
    ``fisher_sums``.

    Raises:
        ValueError: an unknown dim, or posteriors that are not finite.
    """
    dims = select_dims(net, channels)
    leaves, log_p = _gated_values(net, batch, POSTERIOR)
    labels = log_p.argmax(dim=1) if batch.labels is None else batch.labels.to(log_p.device, non_blocking=True)
    by_dim, sums = _gradients(F.nll_loss(log_p, labels, reduction='sum'), leaves), {}
    for dim in dims:
        gradient = _of_joint_gates(by_dim[dim.name], dim)
        sums[dim.name] = gradient.double().abs().sum(dim=0) / dim.unit
        if report:
            report(dim.kind, gradient.numel())
    yield from on_host(sums, torch.isfinite(log_p).all(), POSTERIOR).items()


def on_host(sums: Mapping[str, Tensor], finite: Tensor, criterion: Criterion) -> dict[str, Tensor]:
    """Sums ``(n,)`` by name in host memory, by one copy: each copy waits for the device.

    Args:
        sums: on the device.
        finite: whether the values that they were made from are finite, on the device.
        criterion: it made the values.

    Raises:
        ValueError: values or sums that are not finite.
    """
    sizes = [len(values) for values in sums.values()]
    every = torch.cat([*sums.values(), finite.double()[None]]).cpu()
    criterion.require_finite(bool(every[-1]) and bool(torch.isfinite(every).all()))
    return {name: part.clone() for name, part in zip(sums, every[:-1].split(sizes))}


def _gated_values(
    net: Walk, batch: Batch, criterion: Criterion, amp: str | None = None
) -> tuple[dict[str, Tensor], Tensor]:
    """Gates of each image as leaves ``(B, 1, size)`` by dim, and the criterion's values, which depend on them.

    All dims get gates, even if only some are asked for: without some gates the other results would be rounded
    differently.
    """
    dims = prunable_dims(net.backbone.arch).values()
    leaves = {dim.name: batch.images.new_ones(len(batch.images), 1, dim.size, requires_grad=True) for dim in dims}
    lower = contextlib.nullcontext() if amp is None else torch.autocast(batch.images.device.type, AUTOCAST[amp])
    with torch.enable_grad(), net.gated(leaves):
        with lower:
            outputs = net(batch.images)
        return leaves, criterion.values(outputs, batch)


def _gradients(target: Tensor, leaves: dict[str, Tensor], keep: bool = False) -> dict[str, Tensor]:
    """Gradient by dim; 0 for gates of layers that never run, because nothing reads what comes after them."""
    found = torch.autograd.grad(target, list(leaves.values()), retain_graph=keep, allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if gradient is None else gradient
        for (name, leaf), gradient in zip(leaves.items(), found)
    }


def _of_joint_gates(gradient: Tensor, dim: PrunableDim) -> Tensor:
    """Gradient by image ``(B, size)`` if channels that go together had one gate, from ``(B, 1, size)``."""
    own = gradient[:, 0]
    return own + own[:, _partners(dim, own.device)] if dim.paired else own


def _partners(dim: PrunableDim, device: torch.device) -> Tensor:
    return dim.partners().to(device, non_blocking=True)


def _signs(numbers: Sequence[int], draws: int, size: int, seed: int, device: torch.device) -> Tensor:
    """``(draws, B, size)`` of +-1, int8. They are drawn where they are used: a detector has millions of values."""
    signs = []
    for number in numbers:
        mixed = zlib.crc32(f'{seed} {int(number)}'.encode())  # torch's generator on a CPU uses only 32 bits of a seed
        generator = torch.Generator(device).manual_seed(mixed)
        drawn = torch.randint(0, 2, (draws, size), generator=generator, dtype=torch.int8, device=device)
        signs.append(drawn * 2 - 1)
    return torch.stack(signs, dim=1)


def mean_scores(
    net: Walk, batches: Iterable[Batch], names: Sequence[str], sums_of: Callable[[Walk, Batch], Sums]
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
    return net.with_means({name: total / count for name, total in totals.items()})
