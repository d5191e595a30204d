"""The file of scores: ``{'scores': {dim name: float64 (size,)}, 'meta': {...}}``, higher = keep."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from upvit_mm.arch import ArchSpec
from upvit_mm.files import check_records, save_atomically
from upvit_mm.pruning.dims import prunable_dims
from upvit_mm.pruning.planner import check_scores

SCORES_VERSION = 1


def save_scores(path: str | os.PathLike, scores: Mapping[str, Tensor], arch: ArchSpec, **provenance: Any) -> Path:
    """Write ``scores.pt`` atomically.

    Args:
        path: the file.
        scores: by dim name of ``arch``.
        arch: the architecture that was scored; kept in ``meta``.
        **provenance: plain data: method, its settings, hash of the checkpoint, proxy set.

    Raises:
        ValueError: scores of another architecture, NaN or Inf; nothing is written.
    """
    check_scores(prunable_dims(arch), scores)
    meta = {'version': SCORES_VERSION, 'arch': arch.to_dict(), **provenance}
    tensors = {name: values.detach().cpu().double().clone() for name, values in scores.items()}
    return save_atomically(path, {'scores': tensors, 'meta': meta})


def load_scores(path: str | os.PathLike, arch: ArchSpec) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Scores and ``meta`` of a file, checked to belong to an architecture.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a file of scores, another version, or scores of another architecture.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'scores {str(path)!r} do not exist; tools/prune.py writes them.')
    try:
        check_records(path)
        content = torch.load(path, map_location='cpu', weights_only=True)
        scores, meta = content['scores'], content['meta']
        version = meta['version']
    except OSError:
        raise
    except Exception as error:  # for a file of another kind torch can raise almost any error
        detail = error if isinstance(error, ValueError) else type(error).__name__
        raise ValueError(f'scores {str(path)!r} are damaged or no file of scores: {detail}.') from error
    if version != SCORES_VERSION:
        raise ValueError(f'scores {str(path)!r} have version {version!r}: this package reads {SCORES_VERSION}.')
    check_scores(prunable_dims(arch), scores)
    return scores, meta


def scores_digest(scores: Mapping[str, Tensor]) -> str:
    """SHA-256 of the numbers, whatever file they came from."""
    digest = hashlib.sha256()
    for name in sorted(scores):
        digest.update(name.encode())
        digest.update(scores[name].double().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
