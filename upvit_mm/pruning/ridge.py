"""Ridge regression for layers: which change of their weights explains most of what their outputs lack."""

from __future__ import annotations

import itertools
import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

logger = logging.getLogger('upvit_mm')
ROWS = 4096  # of a matrix product in single precision; the products are summed in double precision
RIDGES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)


class System(ABC):
    """Normal equations of ``input @ change = lack``, added up batch by batch, apart for even and odd images.

    Args:
        shape: of the equations' matrix, ``(..., in, in)``.
        out: columns of the lack.
        like: gives the device.
    """

    def __init__(self, shape: Sequence[int], out: int, like: Tensor):
        double = dict(dtype=torch.float64, device=like.device)
        self.grams = torch.zeros(2, *shape, **double)
        self.moments = torch.zeros(2, *shape[:-1], out, **double)
        self.squares = torch.zeros(2, **double)
        self.images = self.rows = 0

    def halves(self, count: int) -> list[slice]:
        """Which of the next ``count`` images of a batch are even and which odd, counted over all batches."""
        first = self.images % 2
        self.images += count
        return [slice(first, None, 2), slice(1 - first, None, 2)]

    @abstractmethod
    def add(self, x: Tensor, lacks: Sequence[Tensor], weights: Tensor | None) -> None:
        """Add the input of the layers, and what each of their outputs lacks, in the layers' own shapes.

        Args:
            x: the input, ``(B, ...)``.
            lacks: by layer.
            weights: roots of the weights of tokens ``(B, P+N)``; None = all 1.
        """

    @abstractmethod
    def change(self, change: Tensor) -> None:
        """Add a solution ``(..., in, out)`` to the layers' weights."""

    def solve(self, ridge: float | None, name: str) -> float:
        """Correct the layers in place.

        Args:
            ridge: weight of the change's square, in units of the mean square of the input; None = the one of
                ``RIDGES`` that leaves least on the half of the images which a solution has not seen.
            name: of the layers, for messages.

        Returns:
            The share of the lack that is left, on all images.
        """
        gram, moment, square = (part.sum(dim=0) for part in (self.grams, self.moments, self.squares))
        if self.rows < 2 * gram.shape[-1]:
            logger.warning(
                'compensation of %s has %d samples for %d inputs and may fit them alone; use more images.',
                name,
                self.rows,
                gram.shape[-1],
            )
        if not square:
            return 0.0
        change = _solution(gram, moment, self._best() if ridge is None else ridge)
        self.change(change)
        return _left(change, gram, moment, square) / square.item()

    def _best(self) -> float:
        halves = list(zip(self.grams, self.moments, self.squares))

        def unseen(ridge: float) -> float:
            pairs = ((halves[0], halves[1]), (halves[1], halves[0]))
            return sum(_left(_solution(seen[0], seen[1], ridge), *other) for seen, other in pairs)

        return min(RIDGES, key=unseen) if all(half[2] for half in halves) else RIDGES[-1]


def _solution(gram: Tensor, moment: Tensor, ridge: float) -> Tensor:
    scale = gram.diagonal(dim1=-2, dim2=-1).mean(dim=-1)[..., None, None]
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(gram + ridge * scale * eye, moment)


def _left(change: Tensor, gram: Tensor, moment: Tensor, square: Tensor) -> float:
    """Sum of squares of what is lacking after a change."""
    return (square - 2 * (change * moment).sum() + (change * (gram @ change)).sum()).item()


class LayerSystem(System):
    """For Linear layers, or for one convolution, that read the same input; a column of ones stands for the bias.

    A transposed convolution has one bias for all places of a patch, so its bias stays.

    Args:
        layers: with biases or without, all alike; see ``takes``.
    """

    def __init__(self, layers: Sequence[nn.Module]):
        self.layers, weight = layers, layers[0].weight
        self.transposed = isinstance(layers[0], nn.ConvTranspose2d)
        self.with_bias = layers[0].bias is not None and not self.transposed
        inside, outside = weight[0].numel(), sum(len(layer.weight) for layer in layers)
        if self.transposed:
            inside, outside = outside, inside
        size = inside + self.with_bias
        super().__init__((size, size), outside, weight)

    @staticmethod
    def takes(layer: nn.Module) -> bool:
        """Whether each output is a linear function of one patch of the input."""
        if isinstance(layer, nn.ConvTranspose2d):
            whole = layer.kernel_size == layer.stride and layer.padding == layer.output_padding == (0, 0)
            return whole and layer.groups == 1 and layer.dilation == (1, 1)
        if isinstance(layer, nn.Conv2d):
            return layer.groups == 1 and isinstance(layer.padding, tuple) and layer.padding_mode == 'zeros'
        return isinstance(layer, nn.Linear)

    def add(self, x: Tensor, lacks: Sequence[Tensor], weights: Tensor | None) -> None:
        x, lack = self._inputs(x), torch.cat([self._outputs(part) for part in lacks], dim=-1)
        if self.with_bias:
            x = torch.cat([x, x.new_ones(*x.shape[:-1], 1)], dim=-1)  # (B, ..., in + 1)
        if weights is not None:
            x, lack = x * weights[..., None], lack * weights[..., None]
        for k, half in enumerate(self.halves(len(x))):
            inputs, missing = x[half].flatten(0, -2), lack[half].flatten(0, -2)
            for some, part in zip(inputs.split(ROWS), missing.split(ROWS)):
                self.grams[k] += some.T @ some
                self.moments[k] += some.T @ part
            self.squares[k] += missing.double().square().sum()
            self.rows += len(inputs)

    def change(self, change: Tensor) -> None:
        weights, biases = (change[:-1], change[-1]) if self.with_bias else (change, None)
        if self.transposed:
            (layer,) = self.layers
            layer.weight += weights.reshape(layer.weight.shape).to(layer.weight)
            return
        sizes = [len(layer.weight) for layer in self.layers]
        for layer, part in zip(self.layers, weights.split(sizes, dim=1)):
            layer.weight += part.T.reshape(layer.weight.shape).to(layer.weight)
        if biases is not None:
            for layer, part in zip(self.layers, biases.split(sizes)):
                layer.bias += part.to(layer.bias)

    def _inputs(self, x: Tensor) -> Tensor:
        """The rows that the layer multiplies, ``(B, ..., in)``."""
        layer = self.layers[0]
        if isinstance(layer, nn.Linear):
            return x
        if self.transposed:
            return x.flatten(2).transpose(1, 2)
        return F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride).transpose(1, 2)

    def _outputs(self, out: Tensor) -> Tensor:
        """The rows that the layer gives, ``(B, ..., out)``."""
        layer = self.layers[0]
        if isinstance(layer, nn.Linear):
            return out
        if self.transposed:
            return F.unfold(out, layer.kernel_size, stride=layer.stride).transpose(1, 2)
        return out.flatten(2).transpose(1, 2)


class ChannelSystem(System):
    """For a layer that treats each channel by itself: a depth-wise convolution with stride 1, or the gains of a norm.

    Args:
        layer: with a bias.
    """

    def __init__(self, layer: nn.Conv2d | nn.LayerNorm):
        channels = len(layer.weight)
        self.layer, self.taps = layer, layer.weight.numel() // channels + 1
        super().__init__((channels, self.taps, self.taps), 1, layer.weight)

    def add(self, x: Tensor, lacks: Sequence[Tensor], weights: Tensor | None) -> None:
        """``weights`` must be None: there are no prefix tokens in networks with such layers."""
        assert weights is None, 'single channels are not weighted'
        (lack,) = lacks
        taps = self._taps_of(x)
        for k, half in enumerate(self.halves(len(x))):
            some, missing = [tap[half] for tap in taps], lack[half]
            for p, q in itertools.combinations_with_replacement(range(self.taps), 2):
                product = self._sums_over_places(some[p] * some[q])
                self.grams[k, :, p, q] += product
                if p != q:
                    self.grams[k, :, q, p] += product
            for p in range(self.taps):
                self.moments[k, :, p, 0] += self._sums_over_places(some[p] * missing)
            self.squares[k] += missing.double().square().sum()
        self.rows += lack.numel() // len(self.layer.weight)

    def change(self, change: Tensor) -> None:
        self.layer.weight += change[:, :-1, 0].reshape(self.layer.weight.shape).to(self.layer.weight)
        self.layer.bias += change[:, -1, 0].to(self.layer.bias)

    def _taps_of(self, x: Tensor) -> list[Tensor]:
        """What each weight of a channel multiplies, in the shape of the output; the last is 1, for the bias."""
        if isinstance(self.layer, nn.LayerNorm):
            normal = F.layer_norm(x, self.layer.normalized_shape, eps=self.layer.eps)
            return [normal, torch.ones_like(normal)]
        (height, width), (rows, columns) = x.shape[-2:], self.layer.kernel_size
        padded = F.pad(x, (columns // 2,) * 2 + (rows // 2,) * 2)
        shifts = itertools.product(range(rows), range(columns))
        return [*(padded[..., a : a + height, b : b + width] for a, b in shifts), torch.ones_like(x)]

    def _sums_over_places(self, values: Tensor) -> Tensor:
        axes = (0, 1) if isinstance(self.layer, nn.LayerNorm) else (0, 2, 3)  # tokens (B, N, C) or a map (B, C, H, W)
        return values.sum(dim=axes, dtype=torch.float64)
