"""How much memory a training step and an inference take, from small images on the CPU."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, UntypedStorage, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from upvit_mm.doctor.subject import Subject

SIZES = ((448, 448), (448, 672))  # multiples of 32 pixels, and of windows of 14 x 16 pixels


@dataclass(frozen=True)
class Memory:
    """Bytes in float32.

    Attributes:
        size: ``(height, width)`` of an image in pixels.
        batch: images in a training step.
        weights: of the model, and of a teacher beside it.
        gradients: of what is trained.
        states: of the optimizer.
        image: of one image in a training step.
        inference: of one image, without the weights.
    """

    size: tuple[int, int]
    batch: int
    weights: int
    gradients: int
    states: int
    image: float
    inference: float

    @property
    def training(self) -> float:
        """Bytes of a step."""
        return self.weights + self.gradients + self.states + self.batch * self.image

    def in_words(self) -> str:
        shares = {name: getattr(self, name) for name in ('weights', 'gradients', 'states')}
        shares = ', '.join(
            f'{name} {_gb(value)}' for name, value in (shares | {'images': self.batch * self.image}).items()
        )
        return (
            f'about {_gb(self.training)} GB for a training step of {self.batch} x {self.size[0]}x{self.size[1]} in '
            f'float32 ({shares}), {_gb(self.weights + self.inference)} GB to predict one image'
        )


def estimate(subject: Subject, size: tuple[int, int]) -> Memory:
    """Estimate what a training step and a prediction hold at their peak.

    Weights, gradients and the optimizer's states are counted. What images take is measured: the model runs on the CPU,
    a training forward pass with its losses and a prediction, while every tensor that comes to life is counted until it
    dies. Larger images than those of ``SIZES`` are reached by a straight line through two of them.

    Note:
        Measured by us, one image of 800x1344 on a CPU, a whole step with its backward pass, as torch's allocator
        recorded it (``torch.profiler``): Mask R-CNN on UP-PVTv2-micro 909.1 MB, estimated 909.1; RetinaNet on
        UP-DeiT-S 2478, estimated 2454; Mask R-CNN on UP-PVTv2-B0 1818, estimated 1747. Against the GPU memory that
        mmdet publishes for its configs (2 images): Mask R-CNN R-50 4.0 GB for 4.4, R-101 6.1 for 6.4, RetinaNet R-50
        4.3 for 3.8, R-18 2.4 for 1.7 (on a CPU the focal loss keeps more). We have not measured on a GPU. CUDA's
        context comes on top, a batch of upright and lying images is padded to both sides, and images of more than 32
        objects take more.

    Args:
        subject: whose model, optimizer and batch size are taken; its model gets gradients and an optimizer's step.
        size: ``(height, width)`` of training images in pixels, before padding.
    """
    model, optimizer = subject.model, subject.optim_wrapper.optimizer
    divisor = getattr(model.data_preprocessor, 'pad_size_divisor', 1)
    size = tuple(-(-side // divisor) * divisor for side in size)
    image, inference = (_at_size(subject, size, mode) for mode in ('loss', 'predict'))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    states = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    optimizer.zero_grad()
    networks = [model, *filter(None, [getattr(model, 'teacher', None)])]
    weights = sum(_bytes([*network.parameters(), *network.buffers()]) for network in networks)
    return Memory(size, subject.images_per_gpu, weights, _bytes(trained), _bytes(states), image, inference)


def _at_size(subject: Subject, size: tuple[int, int], mode: str) -> float:
    if size[0] * size[1] <= SIZES[-1][0] * SIZES[-1][1]:
        return peak_bytes(subject, size, mode)
    (x, low), (z, high) = ((height * width, peak_bytes(subject, (height, width), mode)) for height, width in SIZES)
    return low + (high - low) / (z - x) * (size[0] * size[1] - x)


def peak_bytes(subject: Subject, size: tuple[int, int], mode: str) -> int:
    """Bytes of the tensors that live at once, at most, while one random image passes, with its losses or predictions.

    Args:
        subject: whose model is run.
        size: ``(height, width)`` in pixels.
        mode: ``'loss'`` or ``'predict'``, as mmengine's models have it.
    """
    model: nn.Module = subject.model.train(mode == 'loss')
    batch = subject.random_batch(*size)
    with torch.set_grad_enabled(mode == 'loss'), LiveBytes() as live:
        result = model(**model.data_preprocessor(batch, mode == 'loss'), mode=mode)
        del result
    return live.peak


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are made while it is active.

    Attributes:
        now: of those that live.
        peak: the most so far.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._seen = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self._seen.update(_storages((args, kwargs)))  # weights, inputs: made before
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            if storage not in self._seen:
                self._seen.add(storage)
                self._add(storage.nbytes())
                weakref.finalize(storage, self._add, -storage.nbytes())
        return result

    def _add(self, size: int) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)


def _storages(tree) -> list[UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _gb(size: float) -> str:
    return f'{size / 1e9:.2f}'
