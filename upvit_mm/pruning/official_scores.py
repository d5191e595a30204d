"""Scores that the authors of UP-ViTs publish for DeiT-B, read as ours.

They are in the folders ``importance/kl5k/importance`` and ``importance/kl2k/importance`` of github.com/yuhao318/UP-ViT:
text files with one number per line, line c for channel c, blocks counted from 0.

=====================================  ==========================================
``Deit_base_12_neck_768_kl_5k.txt``    ``stages.0.embed``
``Deit_base_12_attn_768_kl_3_5k.txt``  ``stages.0.blocks.3.qk`` and ``.v``, alike
``Deit_base_12_ffn_3072_kl_3_5k.txt``  ``stages.0.blocks.3.mlp_hidden``
=====================================  ==========================================

A number is KL(p_dense || p_without_c), summed over the proxy images: ``5k`` are 5 of each of the 1,000 classes. The
authors scored attention by removing channel c of q, k and v at once; with ``tie_qkv``, ``plan_for_target`` does the
same. Both dims hold the same measurement; where they shrink together it counts once (``planner.joint_scores``).
"""

from __future__ import annotations

import logging
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from upvit_mm.arch import ArchSpec
from upvit_mm.arch.family import DEIT
from upvit_mm.files import sha256_of
from upvit_mm.pruning.dims import prunable_dims
from upvit_mm.pruning.score_file import save_scores
from upvit_mm.pruning.table import block_name, stage_name

logger = logging.getLogger('upvit_mm')

SOURCE = 'https://github.com/yuhao318/UP-ViT'
CHECKPOINT_NOTE = "hash of the scored checkpoint unknown; the authors' script loads deit_base_patch16_224-b5f2ef4d.pth"
REMEDY = f'give the folder importance/kl5k/importance or importance/kl2k/importance of a clone of {SOURCE}.'

_KINDS = {'neck': ('embed',), 'attn': ('qk', 'v'), 'ffn': ('mlp_hidden',)}
# the authors also publish rankings; their names are longer and do not match
_NAME = re.compile(
    r'.+?_(?P<depth>\d+)_(?P<part>neck|attn|ffn)_(?P<size>\d+)_kl(?:_(?P<block>\d+))?_(?P<thousands>[1-9]\d*)k\.txt'
)


@dataclass(frozen=True)
class ScoreFile:
    """A file of the authors, described by its name.

    Attributes:
        path: its path.
        part: ``neck``, ``attn`` or ``ffn``.
        block: from 0; None for ``neck``.
        depth: blocks of the network.
        size: number of channels.
        images: number of images of the proxy set; the numbers are sums over them.
    """

    path: Path
    part: str
    block: int | None
    depth: int
    size: int
    images: int

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the dims that its numbers score."""
        owner = stage_name(0) if self.block is None else block_name(0, self.block)
        return tuple(f'{owner}.{kind}' for kind in _KINDS[self.part])


def import_official_scores(
    folder: str | os.PathLike, path: str | os.PathLike, arch: ArchSpec, official_parsing: bool = False
) -> Path:
    """Write the authors' scores as a file of ours.

    Its ``meta`` gives their source, the number of images and how they were parsed. It has no ``checkpoint_sha256``: we
    know only the name of the checkpoint that the authors scored.

    Args:
        folder, arch, official_parsing: see ``read_official_scores``.
        path: the file to write.

    Raises:
        FileNotFoundError, ValueError: as ``read_official_scores``; nothing is written.
    """
    files = official_files(folder, arch)
    provenance = dict(
        method='kl',
        source=SOURCE,
        folder=str(folder),
        files={file.path.name: sha256_of(file.path) for file in files},
        images=files[0].images,
        parsing='official' if official_parsing else 'float',
        note=CHECKPOINT_NOTE,
    )
    return save_scores(path, read_official_scores(folder, arch, official_parsing), arch, **provenance)


def read_official_scores(
    folder: str | os.PathLike, arch: ArchSpec, official_parsing: bool = False
) -> dict[str, Tensor]:
    """The authors' scores, by the names of our dims.

    Args:
        folder: contains their files of one proxy set; other files in it are not read.
        arch: architecture of the scored network, a DeiT.
        official_parsing: read the numbers as the authors' ranking script does, for comparison with their rankings
            only. It takes the last group of digits of a line as the score: ``3.2e-05`` counts as 5 and ``-0.1`` as 0.1.
            So the least important channels rank among the best.

    Returns:
        float64 ``(size,)``, the mean over the proxy images, higher = keep. Tiny scores may be negative, as published.

    Raises:
        FileNotFoundError: no such folder, or no file for a block; the message says which.
        ValueError: a file of another architecture or length, a line that is no finite number, or files that contradict
            each other.
    """
    lines = {file: _lines(file) for file in official_files(folder, arch)}
    number = _last_digits if official_parsing else float
    scores: dict[str, Tensor] = {}
    for file, of_file in lines.items():
        means = torch.tensor([number(line) for line in of_file], dtype=torch.float64) / file.images
        scores |= {name: means.clone() for name in file.dims}
    if official_parsing:
        misread = [float(line) != number(line) for of_file in lines.values() for line in of_file]
        logger.warning(
            "official_parsing: %d of %d scores in %s are misread on purpose, as by the authors' ranking script; use "
            'them for comparison only.',
            sum(misread),
            len(misread),
            folder,
        )
    return scores


def official_files(folder: str | os.PathLike, arch: ArchSpec) -> list[ScoreFile]:
    """The authors' files in a folder, one for the embedding and two for each block, checked against the architecture.

    Raises:
        FileNotFoundError, ValueError: see ``read_official_scores``.
    """
    folder = Path(folder)
    if arch.kind is not DEIT:
        raise ValueError(f'arch = {arch.name!r}: a {arch.family}; the authors publish scores of DeiT only.')
    if not folder.is_dir():
        raise FileNotFoundError(f'scores folder {str(folder)!r} does not exist or is no folder; {REMEDY}')
    found: dict[tuple[str, int | None], ScoreFile] = {}
    for file in filter(None, map(_described, sorted(folder.iterdir()))):
        _check_name(file, arch)
        other = found.setdefault((file.part, file.block), file)
        if other is not file:
            raise ValueError(
                f'{str(file.path)!r} and {other.path.name!r} both score {" and ".join(file.dims)}; keep one of them.'
            )
    _check_complete(folder, found, arch)
    return [found[key] for key in _expected(arch)]


def _expected(arch: ArchSpec) -> list[tuple[str, int | None]]:
    return [('neck', None), *((part, j) for j in range(arch.depths[0]) for part in ('attn', 'ffn'))]


def _described(path: Path) -> ScoreFile | None:
    match = _NAME.fullmatch(path.name)
    if not match or (match['part'] == 'neck') != (match['block'] is None):
        return None
    block = None if match['block'] is None else int(match['block'])
    images = 1000 * int(match['thousands'])
    return ScoreFile(path, match['part'], block, int(match['depth']), int(match['size']), images)


def _check_name(file: ScoreFile, arch: ArchSpec) -> None:
    name, depth = str(file.path), arch.depths[0]
    if file.depth != depth:
        raise ValueError(
            f'{name!r} is of a network of {file.depth} blocks: arch {arch.name!r} has {depth}; give the arch that was '
            'scored.'
        )
    if file.block is not None and file.block >= depth:
        raise ValueError(
            f'{name!r} is of block {file.block}: arch {arch.name!r} has blocks 0 to {depth - 1}; remove it.'
        )
    dims = prunable_dims(arch)
    for dim in file.dims:
        if dims[dim].size != file.size:
            raise ValueError(
                f'{name!r} is of {file.size} channels: {dim} of arch {arch.name!r} has {dims[dim].size}; '
                'give the arch that was scored.'
            )


def _check_complete(folder: Path, found: dict[tuple[str, int | None], ScoreFile], arch: ArchSpec) -> None:
    expected = _expected(arch)
    missing = [key for key in expected if key not in found]
    if missing:
        names = ', '.join(part if block is None else f'{part} of block {block}' for part, block in missing[:5])
        names += ', ...' if len(missing) > 5 else ''
        raise FileNotFoundError(
            f'scores folder {str(folder)!r} lacks {len(missing)} of {len(expected)} files: {names}; {REMEDY}'
        )
    first = found['neck', None]
    for file in found.values():
        if file.images != first.images:
            raise ValueError(
                f'{str(file.path)!r} is of {file.images} images, {first.path.name!r} of {first.images}: scores of one '
                'network must be of one proxy set; keep one set in the folder.'
            )


def _lines(file: ScoreFile) -> list[str]:
    """The lines of a file, each a finite number."""
    # undecodable bytes become a line that is not a number, which has its own error
    lines = file.path.read_text(encoding='utf-8', errors='replace').rstrip().splitlines()
    for i, line in enumerate(lines, 1):
        _check_number(line, f'line {i} of {str(file.path)!r} = {line.strip()[:40]!r}')
    if len(lines) != file.size:
        raise ValueError(
            f'{str(file.path)!r} has {len(lines)} numbers: {file.dims[0]} has {file.size} channels; get the file again.'
        )
    return lines


def _check_number(line: str, where: str) -> None:
    try:
        value = float(line)
    except ValueError:
        raise ValueError(f'{where}: must be one number; get the file again.') from None
    if not math.isfinite(value):
        raise ValueError(f'{where}: must be a finite number; get the file again.')


def _last_digits(line: str) -> float:
    """The number that the authors' ranking script reads from a line."""
    return float(re.findall('[0-9.]+', line)[-1])
