"""What an importance looks at: the classes of a classifier, or the tokens that a detector reads.

A criterion turns the outputs of a network into values, and says how far changed values are from those of the dense
network. Exact scores are that distance without a channel. The Fisher estimate gets the same distance, to second order,
for all channels at once, from gradients of the values under random signs (``importance.py``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from upvit_mm.arch.size import Grid, Size
from upvit_mm.pruning.batch import Batch
from upvit_mm.pruning.crew import Crew
from upvit_mm.pruning.full_precision import full_precision
from upvit_mm.pruning.token_net import ReadTokens, TokenNet

Sizes = Sequence[Size] | None  # (height, width) of each picture without its padding, in pixels


class Criterion(ABC):
    """What is measured at the outputs of a network; ``models/detector_loss.py`` has one that needs a detector.

    Attributes:
        name: on the command line, in configs and in files.
        factor: second-order distance, divided by the sum of squared changes of ``weights * values``.
        reads: what it reads, in a message.
    """

    name: str
    factor: float
    reads: str = 'outputs'

    @abstractmethod
    def values(self, outputs: Any, batch: Batch) -> Tensor:
        """Values ``(B, D)`` that depend on the outputs of a batch; differentiable.

        They are not finite where the outputs are not. To see that means to wait for a GPU, so the caller looks when it
        waits anyway (``require_finite``).
        """

    @abstractmethod
    def weights(self, values: Tensor) -> Tensor | float:
        """Weight of each value, constant in the outputs."""

    @abstractmethod
    def distance(self, reference: Tensor, values: Tensor) -> Tensor:
        """From the values ``(B, D)`` of the dense network to ``(K, B, d)``, the last ``d <= D`` of them: ``(K, B)``."""

    def require_finite(self, are_finite: bool) -> None:
        """Refuse what was computed from values that are not finite.

        Raises:
            ValueError: they are not.
        """
        if not are_finite:
            raise ValueError(f'{self.reads} of the network are not finite; check the checkpoint and the preprocessing.')


class Posterior(Criterion):
    """KL divergence of the class posteriors at temperature 1 (UP-ViTs, eq. 1); its network is a ``PosteriorNet``."""

    name = 'posterior'
    factor = 0.5
    reads = 'logits'

    def values(self, outputs: Tensor, batch: Batch | None) -> Tensor:
        """Log posteriors of logits ``(B, classes)``, in float64 whatever the network's precision: scores of 1e-8 are
        differences of these values."""
        return F.log_softmax(outputs.double(), dim=-1)

    def weights(self, values: Tensor) -> Tensor:
        return values.detach().exp().sqrt()

    def distance(self, reference: Tensor, values: Tensor) -> Tensor:
        return (reference.exp() * (reference - values)).sum(dim=-1)


@dataclass(frozen=True, eq=False)
class ReadTokensChange(Criterion):
    """Mean squared change of the tokens that a neck reads; its network is a ``TokenNet``.

    A channel's change is in units of its standard deviation over the proxy set, and each map counts as the mean over
    its tokens of the sum over channels. Tokens of the padding around a picture do not count. It needs no labels and no
    head, and works at any picture size and with any windows. This is ours, not the paper's.

    Attributes:
        deviations: standard deviation of each channel by map, ``(C,)``; see ``token_deviations``.
    """

    deviations: tuple[Tensor, ...]

    name = 'tokens'
    factor = 1.0
    reads = 'tokens'

    def values(self, outputs: ReadTokens, batch: Batch) -> Tensor:
        """Tokens, divided by the deviations and by the root of their number, ``(B, D)``; 0 in the padding."""
        parts = []
        for (tokens, grid), deviation in zip(outputs, self.deviations[len(self.deviations) - len(outputs) :]):
            tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
            real = real_tokens(grid, batch.images, batch.sizes).to(tokens)  # (B, N)
            scale = real / real.sum(dim=1, keepdim=True).sqrt()
            by_channel = torch.where(deviation > 0, 1 / deviation, 0.0).to(tokens)  # a constant channel tells nothing
            parts.append((tokens * by_channel * scale[:, :, None]).flatten(1))
        return torch.cat(parts, dim=1)

    def weights(self, values: Tensor) -> float:
        return 1.0

    def distance(self, reference: Tensor, values: Tensor) -> Tensor:
        return (values - reference[:, reference.shape[1] - values.shape[-1] :]).double().square().sum(dim=-1)


@torch.no_grad()
@full_precision()
def token_deviations(net: TokenNet, batches: Sequence[Batch], crew: Crew = Crew()) -> tuple[Tensor, ...]:  # noqa: B008
    """Standard deviation over pictures and places of each channel of each map, ``(C,)`` float64.

    Args:
        net: the dense network.
        batches: the proxy set.
        crew: processes that share the batches; all get the result.

    Returns:
        On the network's device.

    Raises:
        ValueError: no images.
    """
    mine = {k: _moments(net, batches[k]) for k in range(crew.rank, len(batches), crew.size)}
    on_host = {k: [sums.cpu() for sums in parts] for k, parts in mine.items()}
    found = {k: parts for theirs in crew.gather(on_host) for k, parts in theirs.items()}
    if not found:
        raise ValueError('the proxy set has no images; nothing can be scored.')
    deviations, device = [], next(net.parameters()).device
    for parts in zip(*(found[k] for k in sorted(found))):
        n, total, square = sum(parts)
        deviations.append((square / n - (total / n).square()).clamp(min=0).sqrt().to(device, non_blocking=True))
    return tuple(deviations)


def _moments(net: TokenNet, batch: Batch) -> list[Tensor]:
    """By map the number of tokens, their sum and the sum of their squares, each ``(C,)``: ``(3, C)`` float64."""
    moments = []
    for tokens, grid in net(batch.images):
        real = real_tokens(grid, batch.images, batch.sizes).flatten()  # (B * N)
        found = tokens.double().flatten(0, 1).where(real[:, None], 0.0)
        count = real.sum().double().expand(found.shape[1])
        moments.append(torch.stack([count, found.sum(dim=0), found.square().sum(dim=0)]))
    return moments


def real_tokens(grid: Grid, images: Tensor, sizes: Sizes) -> Tensor:
    """Bool ``(B, N)``: which tokens of a grid see a part of the picture, not only its padding."""
    real = torch.ones(len(images), *grid, dtype=torch.bool, device=images.device)
    for k, size in enumerate(sizes or ()):
        rows, columns = (-(-part * cells // whole) for part, cells, whole in zip(size, grid, images.shape[-2:]))
        real[k, rows:] = False
        real[k, :, columns:] = False
    return real.flatten(1)


def log_posteriors(logits: Tensor) -> Tensor:
    """The values of ``Posterior``, which must be finite.

    Raises:
        ValueError: NaN or Inf.
    """
    criterion = Posterior()
    criterion.require_finite(bool(torch.isfinite(logits).all()))
    return criterion.values(logits, None)
