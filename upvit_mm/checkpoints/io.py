"""Files: safe reading of any known checkpoint, and writing of ours."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from upvit_mm.checkpoints.keys import State, to_ours
from upvit_mm.files import write_atomically
from upvit_mm.version import __version__

logger = logging.getLogger('upvit_mm')

FORMAT_VERSION = 1
WRAPPERS = ('state_dict', 'model')  # mmengine (EMA weights already in place), official DeiT and UP-ViT files
# plain data that mmengine writes into its checkpoints beside the weights
HARMLESS = {
    'mmengine.logging.history_buffer': ('HistoryBuffer',),
    'numpy': ('dtype', 'ndarray'),
    'numpy.core.multiarray': ('_reconstruct', 'scalar'),
    'numpy.dtypes': ('Float32DType', 'Float64DType', 'Int64DType'),
}


def read_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """The content of a checkpoint file, read without running code from it.

    Args:
        path: ``.pth``/``.pt``, ``.safetensors``, or an http(s) address, which is kept in torch's hub folder.

    Returns:
        What the file holds, on the CPU: a state dict or a dict around one.

    Raises:
        FileNotFoundError: no such file.
        ValueError: corrupt, or it holds objects other than tensors and plain data.
    """
    path = _download(str(path)) if str(path).startswith(('http://', 'https://')) else Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'checkpoint {str(path)!r} does not exist; check the path.')
    try:
        if path.suffix == '.safetensors':
            return safetensors.torch.load_file(path)
        with _harmless_globals():
            content = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(_refusal(path, error)) from error
    except (RuntimeError, EOFError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise ValueError(
            f'checkpoint {str(path)!r} is corrupt or no checkpoint: {_first_line(error)}. Download or write it again.'
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f'checkpoint {str(path)!r} holds a {type(content).__name__}, not a dict of tensors.')
    return content


def load_backbone(path: str | os.PathLike, prefix: str | None = None) -> State:
    """The backbone's tensors of a checkpoint in any known layout, under our names.

    Args:
        path: see ``read_checkpoint``.
        prefix: what stands before the backbone's keys; None finds ``backbone.`` or nothing by itself.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unreadable, no key has the prefix, or an unknown layout.
    """
    backbone, rest = _split(_state_dict(read_checkpoint(path), path), prefix, path)
    if rest:
        logger.info('%s: dropped %d tensors outside the backbone (%s)', path, len(rest), _heads(rest))
    return to_ours(backbone)


def load_classifier(path: str | os.PathLike) -> State:
    """A classifier's tensors in any known layout, as an mmpretrain ``ImageClassifier`` names them.

    Returns:
        ``backbone.*`` in our layout, and ``head.fc.weight`` ``(classes, C)`` and ``head.fc.bias`` when there is a head.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unreadable or an unknown layout.
    """
    backbone, rest = _split(_state_dict(read_checkpoint(path), path), None, path)
    state = {f'backbone.{k}': v for k, v in to_ours(backbone).items()}
    heads = {'head.fc.': ('head.fc.', 'head.layers.head.', 'head.')}
    for theirs in heads['head.fc.']:
        if f'{theirs}weight' in rest:
            state |= {f'head.fc.{p}': rest.pop(f'{theirs}{p}') for p in ('weight', 'bias')}
            break
    if rest:
        logger.warning('%s: dropped %d tensors outside backbone and head (%s)', path, len(rest), _heads(rest))
    return state


def save_checkpoint(path: str | os.PathLike, state: Mapping[str, Tensor], **provenance: Any) -> Path:
    """Write ``{'state_dict': ..., 'meta': ...}`` atomically; ``read_checkpoint`` and mmengine read it.

    Args:
        path: the file.
        state: tensors.
        **provenance: plain data (tool, arguments, hashes, arch) kept in ``meta`` beside the package version.
    """
    meta = {'format_version': FORMAT_VERSION, 'upvit_mm_version': __version__, **provenance}
    # clones: a view would drag its whole storage into the file
    tensors = {k: v.detach().to('cpu', copy=True).contiguous() for k, v in state.items()}
    return write_atomically(path, lambda part: torch.save({'state_dict': tensors, 'meta': meta}, part))


def _state_dict(content: Mapping[str, Any], path) -> State:
    for key in WRAPPERS:
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    state = {k.removeprefix('module.'): v for k, v in content.items() if isinstance(v, Tensor)}
    if not state:
        keys = ', '.join(map(str, list(content)[:5]))
        raise ValueError(f'checkpoint {str(path)!r} holds no tensors; its keys are: {keys or "none"}.')
    return state


def _split(state: State, prefix: str | None, path) -> tuple[State, State]:
    """Backbone tensors without their prefix, and everything else."""
    if prefix is None:
        prefix = 'backbone.' if any(k.startswith('backbone.') for k in state) else ''
    if prefix:
        prefix = prefix if prefix.endswith('.') else f'{prefix}.'
        backbone = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
        if not backbone:
            raise ValueError(
                f'checkpoint {str(path)!r} has no key with prefix {prefix!r}; its first keys are '
                f'{", ".join(list(state)[:5])}.'
            )
        return backbone, {k: v for k, v in state.items() if not k.startswith(prefix)}
    is_head = {k: k.split('.')[0] in ('head', 'head_dist') for k in state}
    return {k: v for k, v in state.items() if not is_head[k]}, {k: v for k, v in state.items() if is_head[k]}


def _heads(keys) -> str:
    return ', '.join(sorted({k.split('.')[0] for k in keys}))


@contextlib.contextmanager
def _harmless_globals() -> Iterator[None]:
    """Allow, while reading, the plain data types that mmengine's checkpoints carry."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(
        [getattr(importlib.import_module(m), name) for m, names in HARMLESS.items() for name in names]
    )
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _download(url: str) -> Path:
    target = Path(torch.hub.get_dir()) / 'checkpoints' / url.rsplit('/', 1)[-1].split('?')[0]
    if not target.is_file():
        logger.info('downloading %s to %s', url, target)
        write_atomically(target, lambda part: torch.hub.download_url_to_file(url, str(part)))
    return target


def _refusal(path: Path, error: Exception) -> str:
    return (
        f'checkpoint {str(path)!r} is refused, it holds more than tensors and plain data, which could run code on '
        f'loading: {_first_line(error)} If you trust its source, save its state dict alone with torch.save.'
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
