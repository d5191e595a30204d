"""Images to compare networks on: a folder, or the images of a COCO annotation file."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import mmcv
import numpy as np
import torch
from torch import Tensor

from upvit_mm.arch.size import Size
from upvit_mm.data.picture_files import PICTURE_ENDINGS, leave_out

logger = logging.getLogger('upvit_mm')
PIXELS_AT_ONCE = 1 << 20  # of a batch: 20 images of 224x224, one of 800x1333


@dataclass(frozen=True)
class ImageFiles:
    """Readable image files, in the order in which they are used.

    Attributes:
        paths: of the images.
        unreadable: files that were left out.
    """

    paths: Sequence[Path]
    unreadable: Sequence[Path] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def batches(self, size: Size) -> Iterator[Tensor]:
        """All images, stretched to ``(height, width)``: BGR ``(B, 3, h, w)`` uint8, in batches that fit in memory."""
        at_once = max(1, PIXELS_AT_ONCE // (size[0] * size[1]))
        for start in range(0, len(self.paths), at_once):
            yield self.read(self.paths[start : start + at_once], size)

    def read(self, paths: Sequence[Path], size: Size) -> Tensor:
        """Some images, stretched to ``(height, width)``: BGR ``(B, 3, h, w)`` uint8."""
        pictures = [mmcv.imresize(mmcv.imread(path, 'color'), size[::-1]) for path in paths]
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def find_images(source: str | Path, root: str | Path | None = None, count: int = 50, seed: int = 0) -> ImageFiles:
    """At most ``count`` random images, in random order.

    Args:
        source: a folder (searched recursively) or a COCO annotation file.
        root: folder of a COCO file's images; None searches the file's folder, the folder above, and there the folder of
            its split (``val2017`` for ``annotations/instances_val2017.json``).
        count: images, at least 2: half of them fit the ridge map, the others evaluate it.
        seed: seed of choice and order.

    Raises:
        FileNotFoundError: no such folder or file, or no folder of its images.
        ValueError: not a COCO file, fewer than 2 images, or more than 1 % of them cannot be read.
    """
    if count < 2:
        raise ValueError(f'{count} image(s) are wanted: at least 2 are needed, one of them for evaluation.')
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f'images {str(source)!r}: no such folder or annotation file.')
    found = _of_folder(source) if source.is_dir() else _of_coco(source, None if root is None else Path(root))
    order = np.random.default_rng(seed).permutation(len(found))[:count]
    return _readable([found[k] for k in order], source)


def _of_folder(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.rglob('*') if path.suffix.lower() in PICTURE_ENDINGS and path.is_file())
    if not found:
        raise ValueError(f'folder {str(folder)!r} holds no image ({", ".join(PICTURE_ENDINGS)}).')
    return found


def _of_coco(file: Path, root: Path | None) -> list[Path]:
    try:
        names = sorted(image['file_name'] for image in json.loads(file.read_text(encoding='utf-8'))['images'])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f'{str(file)!r} is not a folder and not a COCO annotation file: {error!r}.') from error
    if not names:
        raise ValueError(f'annotation file {str(file)!r} lists no image.')
    above = file.parent.parent
    folders = [file.parent, above, above / file.stem.rpartition('_')[2]] if root is None else [root]
    for folder in folders:
        if any((folder / name).is_file() for name in names):
            return [folder / name for name in names]
    raise FileNotFoundError(
        f'no image of {str(file)!r}, {names[0]} the first, lies in {", ".join(map(str, folders))}; name their folder.'
    )


def _readable(paths: Sequence[Path], source: Path) -> ImageFiles:
    """Decode all images once, so that one bad file cannot stop hours of work."""
    good, bad = [], {}
    for path in paths:
        try:
            if mmcv.imread(path, 'color') is None:
                raise ValueError('no picture')
            good.append(path)
        except Exception as error:  # decoders can raise any error
            bad[path] = error
    leave_out(bad, len(paths))
    if len(good) < 2:
        raise ValueError(f'{str(source)!r} gives {len(good)} image: at least 2 are needed, one of them for evaluation.')
    return ImageFiles(good, list(bad))
