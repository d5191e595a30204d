"""Files: safe reading of any known checkpoint, and writing of ours."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from upvit_mm.arch import ArchSpec
from upvit_mm.checkpoints.contents import Place, State, find_backbone
from upvit_mm.checkpoints.heads import linear_head
from upvit_mm.checkpoints.keys import to_ours
from upvit_mm.checkpoints.known_arch import check_arch_of
from upvit_mm.files import check_records, save_atomically, write_atomically
from upvit_mm.version import __version__

logger = logging.getLogger('upvit_mm')

FORMAT_VERSION = 1
# Types that trainings write together with the weights: loss histories and numbers of numpy 1 or 2 (mmengine), arguments
# (timm and DeiT). They are read as placeholders, so none of these functions is called.
IGNORED = (
    'argparse.Namespace',
    'pathlib.PosixPath',
    'pathlib.WindowsPath',
    'pathlib._local.PosixPath',
    'pathlib._local.WindowsPath',
    '_codecs.encode',
    'builtins.getattr',
    'mmengine.logging.history_buffer.HistoryBuffer',
    'numpy.dtype',
    'numpy.ndarray',
    *(f'numpy.{core}.multiarray.{name}' for core in ('core', '_core') for name in ('_reconstruct', 'scalar')),
)


class _Placeholder:
    """Placeholder for an object of a type in ``IGNORED``, without its content."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass


# torch finds an allowed type by its module and name
_PLACEHOLDERS = [
    type(name, (_Placeholder,), {'__module__': module, '__qualname__': name})
    for module, _, name in (path.rpartition('.') for path in IGNORED)
]


def read_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """The content of a checkpoint file, read without running code from it.

    Args:
        path: ``.pth``/``.pt``, ``.safetensors``, or an http(s) address; the download is kept in torch's hub folder.

    Returns:
        The content of the file, on the CPU: a state dict or a dict around one. Training histories of mmengine become
        empty placeholders.

    Raises:
        FileNotFoundError: no such file.
        ValueError: corrupt, or it holds objects other than tensors and plain data.
    """
    path = local_file(path)
    try:
        if path.suffix == '.safetensors':
            return safetensors.torch.load_file(path)
        check_records(path)
        with _placeholders():
            content = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # a damaged pickle can raise almost any error
        if isinstance(error, OSError) and error.filename:  # the system's own error; torch's have no file name
            raise
        raise ValueError(_reason(path, error)) from error
    if not isinstance(content, dict):
        raise ValueError(f'checkpoint {str(path)!r} holds a {type(content).__name__}, not a dict of tensors.')
    return content


def local_file(path: str | os.PathLike) -> Path:
    """A checkpoint as a local file; an http(s) address is downloaded once, to torch's hub folder.

    Raises:
        FileNotFoundError: no such file, or the address cannot be reached.
    """
    path = _download(str(path)) if str(path).startswith(('http://', 'https://')) else Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'checkpoint {str(path)!r} does not exist; check the path.')
    return path


def load_backbone(
    path: str | os.PathLike, prefix: str | None = None, weights: str | None = None, arch: ArchSpec | None = None
) -> State:
    """The backbone's tensors of a checkpoint in any known layout, with our names.

    Args:
        path: see ``read_checkpoint``.
        prefix: the text before the backbone's keys, with or without wrappers such as ``module.``; None finds it.
        weights: ``'ema'`` or ``'raw'`` where a file has both; None takes those that its maker evaluates, see
            ``AVERAGES``.
        arch: the architecture to load; compared with the file's own, see ``check_arch_of``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unreadable, no key has the prefix, several backbones, an unknown layout, or another architecture.
    """
    return backbone_of(_find(path, prefix, weights, arch), path, arch)


def backbone_of(place: Place, path: object, arch: ArchSpec | None = None) -> State:
    """See ``load_backbone``."""
    if rest := [*place.rest(), *place.head()]:
        logger.info('%s: dropped %d tensors outside the backbone (%s)', path, len(rest), _words(rest))
    return to_ours(place.backbone(), arch)


def load_classifier(
    path: str | os.PathLike, prefix: str | None = None, weights: str | None = None, arch: ArchSpec | None = None
) -> State:
    """A classifier's tensors from any known layout, with the names of an mmpretrain ``ImageClassifier``.

    Args:
        path: see ``read_checkpoint``.
        prefix: see ``load_backbone``.
        weights: see ``load_backbone``.
        arch: see ``load_backbone``.

    Returns:
        ``backbone.*`` in our layout, and ``head.fc.weight`` ``(classes, C)`` and ``head.fc.bias`` when there is a head.

    Raises:
        FileNotFoundError: no such file.
        ValueError: as ``load_backbone``, or a head that has hidden layers or no bias.
    """
    return classifier_of(_find(path, prefix, weights, arch), path, arch)


def classifier_of(place: Place, path: object, arch: ArchSpec | None = None) -> State:
    """See ``load_classifier``."""
    head, extra = linear_head(place.head(), path)
    if rest := [*place.rest(), *extra]:
        logger.warning('%s: dropped %d tensors outside backbone and head (%s)', path, len(rest), _words(rest))
    state = {f'backbone.{k}': v for k, v in to_ours(place.backbone(), arch).items()}
    return state | {f'head.fc.{k}': v for k, v in head.items()}


def save_checkpoint(path: str | os.PathLike, state: Mapping[str, Tensor], **provenance: Any) -> Path:
    """Write ``{'state_dict': ..., 'meta': ...}`` atomically; ``read_checkpoint`` and mmengine read it.

    Args:
        path: the file.
        state: tensors.
        **provenance: plain data (tool, arguments, hashes, arch) kept in ``meta`` beside the package version.
    """
    meta = {'format_version': FORMAT_VERSION, 'upvit_mm_version': __version__, **provenance}
    # clones: a view would write its whole storage into the file
    tensors = {k: v.detach().to('cpu', copy=True).contiguous() for k, v in state.items()}
    return save_atomically(path, {'state_dict': tensors, 'meta': meta})


def _find(path: str | os.PathLike, prefix: str | None, weights: str | None, arch: ArchSpec | None) -> Place:
    content = read_checkpoint(path)
    place = find_backbone(content, path, prefix, weights)
    if arch is not None:
        check_arch_of(content, arch, path)
    return place


def _words(names: Iterable[str]) -> str:
    return ', '.join(sorted({name.split('.')[0] for name in names}))


@contextlib.contextmanager
def _placeholders() -> Iterator[None]:
    """Read the types in ``IGNORED`` as placeholders inside the ``with`` block."""
    before = [*torch.serialization.get_safe_globals()]  # some versions of torch return the list itself
    torch.serialization.add_safe_globals(_PLACEHOLDERS)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _download(url: str) -> Path:
    name = Path(url.rsplit('/', 1)[-1].split('?')[0])  # many files on the web have the same name: model.safetensors
    digest = hashlib.sha256(url.encode()).hexdigest()[:8]
    target = Path(torch.hub.get_dir()) / 'checkpoints' / f'{name.stem}-{digest}{name.suffix}'
    if not target.is_file():
        logger.info('downloading %s to %s', url, target)
        try:
            write_atomically(target, lambda part: torch.hub.download_url_to_file(url, str(part)))
        except URLError as error:
            raise FileNotFoundError(
                f'checkpoint {url!r} could not be downloaded: {error}. Check the address, or download it by hand.'
            ) from error
    return target


def _reason(path: Path, error: Exception) -> str:
    # not torch's whole message: it suggests loading the file unsafely
    if foreign := re.search(r'GLOBAL ([\w.]+)', str(error)):
        return (
            f'checkpoint {str(path)!r} is refused: it holds {foreign[1]}, which is neither a tensor nor plain data and '
            'could run code on loading. If you trust its source, save its state dict alone with torch.save.'
        )
    detail = str(error).rpartition('WeightsUnpickler error: ')[2].strip() or type(error).__name__
    return (
        f'checkpoint {str(path)!r} is corrupt or no checkpoint: {detail.splitlines()[0].rstrip(".")}. '
        'Download or write it again.'
    )
