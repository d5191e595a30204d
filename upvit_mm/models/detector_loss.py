"""The criterion that needs labels: what a channel changes of the detector's own loss."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, distributed, nn

from upvit_mm.models.layers.grid import tokens_to_map
from upvit_mm.pruning.batch import Batch
from upvit_mm.pruning.criteria import Criterion
from upvit_mm.pruning.token_net import ReadTokens


class DetectorLoss(Criterion):
    """Squared change of the loss of each picture; its network is a ``TokenNet``.

    To second order its mean over pictures is the mean squared gradient of the loss, the diagonal of the empirical
    Fisher information (arXiv 1905.12558), so that one backward pass is enough. The loss is the sum of all losses of
    neck and heads, of one picture at a time, in evaluation mode.

    Args:
        detector: a trained detector of mmdet; a copy is used, whose backbone's maps are given.
        device: where it runs.

    Raises:
        ValueError: several processes; mmdet's heads average their losses over them.
    """

    name = 'loss'
    factor = 1.0

    def __init__(self, detector: nn.Module, device: str = 'cpu'):
        if distributed.is_initialized() and distributed.get_world_size() > 1:
            raise ValueError(
                "criterion = 'loss': the heads of mmdet average their losses over processes; start one process, or "
                'take --criterion tokens.'
            )
        self._maps = GivenMaps()
        memo = {id(detector.backbone): self._maps}  # the backbone is not copied
        self._detector = copy.deepcopy(detector, memo).eval().requires_grad_(False).to(device)

    def values(self, outputs: ReadTokens, batch: Batch) -> Tensor:
        """Loss of each picture, ``(B, 1)``; ``batch.samples`` are its annotated pictures.

        Raises:
            ValueError: a loss that is not finite.
        """
        assert batch.samples is not None, 'the loss needs annotated pictures'
        losses = []
        for k, (number, sample) in enumerate(zip(batch.numbers, batch.samples, strict=True)):
            self._maps.maps = tuple(tokens_to_map(tokens[k : k + 1], grid) for tokens, grid in outputs)
            with torch.random.fork_rng():
                torch.manual_seed(number)  # heads of two stages draw their boxes
                found = self._detector.loss(batch.images[k : k + 1], [copy.deepcopy(sample).to(batch.images.device)])
            loss, _ = self._detector.parse_losses(found)
            if not torch.isfinite(loss):
                raise ValueError(f'the loss of picture {number} is {loss.item()}; check the checkpoint and the labels.')
            losses.append(loss)
        return torch.stack(losses)[:, None]

    def weights(self, values: Tensor) -> float:
        return 1.0

    def distance(self, reference: Tensor, values: Tensor) -> Tensor:
        return (values - reference).double().square().sum(dim=-1)


class GivenMaps(nn.Module):
    """In place of a backbone: it returns maps that are there already.

    Args:
        maps: ``(B, C, H, W)`` each; they may also be set later.
    """

    def __init__(self, maps: Sequence[Tensor] = ()):
        super().__init__()
        self.maps = tuple(maps)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """The maps, whatever the images."""
        return self.maps
