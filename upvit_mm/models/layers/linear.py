"""Linear layer on tokens (shape legend: ``layers/__init__.py``)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upvit_mm.models.layers.fast_paths import fast_paths, in_plain_inference, may_hurry
from upvit_mm.models.layers.grid import map_to_tokens, tokens_to_map


class Linear(nn.Linear):
    """``nn.Linear`` for tokens ``(B, n, C)``, run on a CPU as the equal 1x1 convolution at inference.

    torch's Linear first writes the bias to the whole output and then adds the product. The convolution adds the bias in
    the same pass, which saves a quarter of the time of a wide layer. With gradients the usual Linear is faster.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != 'cpu' or x.dtype != torch.float32 or not (fast_paths() and in_plain_inference()):
            return super().forward(x)
        out = F.conv2d(tokens_to_map(x, (1, x.shape[1])), self.weight[:, :, None, None], self.bias)
        return map_to_tokens(out)


JOINT_ON = ('cuda',)  # kinds of devices; the gain there is fewer launches, of which a CPU has none
ALIGNED = 8  # channels: kernels of attention read 16 bytes at once from every row of every part


def joint(layers: Sequence[nn.Linear], x: Tensor) -> Sequence[Tensor]:
    """The outputs of several layers on one input ``(B, n, C)``, by one matrix product on a GPU.

    The input is read once, and there are fewer launches. The weights are put together in each call (a copy of weights,
    not of tokens), so that parameters, their names and their gradients stay those of the single layers.
    """
    if not _takes_one_product(layers, x):
        return tuple(layer(x) for layer in layers)
    weight = torch.cat([layer.weight for layer in layers])
    biases = [weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias for layer in layers]
    return F.linear(x, weight, torch.cat(biases)).split([len(layer.weight) for layer in layers], dim=-1)


def _takes_one_product(layers: Sequence[nn.Linear], x: Tensor) -> bool:
    if x.device.type not in JOINT_ON or not may_hurry(x, *layers):
        return False
    # a class of another library in a layer's place (an adapter, a quantised layer) computes something else
    return all(type(layer) is Linear and len(layer.weight) % ALIGNED == 0 for layer in layers)
