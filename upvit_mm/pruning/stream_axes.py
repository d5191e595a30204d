"""The residual stream in its principal axes: the same network, whose embedding can be narrowed by directions.

A stock LayerNorm network reads its stream only through norms. So the stream may be rotated if the rotation keeps its
mean out: writers (patch and position embeddings, class token, ``proj``, ``fc2``) write rotated values, and readers (q,
k, v, ``fc1``, head) undo the rotation and take over the gains and offsets of the norms. In the turned network every
norm has the gain 1 and the offset 1, and direction k of the stream is row k of the orthonormal cosine matrix. Row 0 is
the mean: the stream never has it, and the norm's offset uses it to carry the old offsets.

To narrow the stream from C to C' channels, directions are kept instead of channels. They are written with the cosine
matrix of the smaller size (``narrowing``), so that the norms of the smaller network have the same mean and variance as
the kept part of the stream. This is exact: the result is the network without the other directions.

The directions are ordered by what they matter: half by the second moments of the normalised stream, half by what its
readers use. This is ours, not the paper's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from upvit_mm.pruning.batch import Batch
from upvit_mm.pruning.cosines import cosines, times
from upvit_mm.pruning.dims import table_of
from upvit_mm.pruning.full_precision import full_precision
from upvit_mm.pruning.table import BACKBONE
from upvit_mm.pruning.walk import Walk

State = dict[str, Tensor]


@torch.no_grad()
@full_precision()
def turn_stream(net: Walk, state: Mapping[str, Tensor], batches: Iterable[Batch], stage: int = 0) -> State:
    """The same network with the residual stream of a stage in its principal axes.

    Args:
        net: the dense network.
        state: its tensors, ``backbone.*`` and ``head.fc.*`` if there is a head; other readers of the stage's last norm
            must be turned by ``reading_of``.
        batches: unlabelled pictures; each is read once.
        stage: number of the stage.

    Returns:
        A new state dict of the same architecture and outputs.

    Raises:
        ValueError: no pictures, a family whose stream does not allow it, or a map that is read from the middle of it.
    """
    _check_places(net, stage)
    readers = _readers(net, state, stage)
    basis = _principal_directions(net, state, readers, batches, stage)  # (C, C - 1)
    size = len(basis)
    write = cosines(size)[1:].T @ basis.T  # (C, C), writes no mean
    turned = dict(state)
    for slot in table_of(net.backbone.arch).stream_writers(net.backbone.arch, stage):
        turned[slot.tensor] = times(state[slot.tensor], write, slot.axis)
    for norm, keys in readers.items():
        read = reading_of(state, norm, basis)
        for key in keys:
            turned[key] = times(state[key], read.T, 1)
        for part in ('weight', 'bias'):
            turned[f'{norm}.{part}'] = torch.ones_like(state[f'{norm}.{part}'])
    return turned


def reading_of(state: Mapping[str, Tensor], norm: str, basis: Tensor) -> Tensor:
    """From the output of a turned norm to that of the old one, ``(C, C)`` float64."""
    gain, offset = state[f'{norm}.weight'].double(), state[f'{norm}.bias'].double()
    size = len(basis)
    return gain[:, None] * (basis @ cosines(size)[1:]) + offset[:, None] / size


def _check_places(net: Walk, stage: int) -> None:
    """Refuse maps from the middle of a stage: they are the residual stream itself, and the turned one has no mean."""
    middle = [j for i, j in net.places if i == stage and j + 1 < net.backbone.arch.depths[stage]]
    if middle:
        raise ValueError(
            f'embed: the map after block {middle[0]} of stage {stage} is the residual stream itself, which a rotation '
            'changes; take out_indices = (-1,), or cut channels (embed = channels).'
        )


def _readers(net: Walk, state: Mapping[str, Tensor], stage: int) -> dict[str, list[str]]:
    readers = table_of(net.backbone.arch).stream_readers(net.backbone.arch, stage)
    return {norm: [key for key in keys if key in state] for norm, keys in readers.items()}


def _principal_directions(
    net: Walk, state: Mapping[str, Tensor], readers: Mapping[str, list[str]], batches: Iterable[Batch], stage: int
) -> Tensor:
    """Orthonormal columns ``(C, C - 1)``, orthogonal to the ones vector, those that matter most first."""
    size = net.backbone.arch.embed_dims[stage]
    mean = torch.full((size, size), 1 / size, dtype=torch.float64)  # the projection to it
    keep_out = torch.eye(size, dtype=torch.float64) - mean
    total = torch.zeros(size, size, dtype=torch.float64)
    for norm, moment in _moments_of(net, readers, batches).items():
        gain = state[f'{norm}.weight'].double()
        weights = [state[key].double().movedim(1, -1).flatten(0, -2) * gain for key in readers[norm]]
        for part in (moment, *([sum(w.T @ w for w in weights)] if weights else [])):
            part = keep_out @ part @ keep_out
            if part.trace() > 0:  # a branch that is switched off reads nothing
                total += part / part.trace()
    _, vectors = torch.linalg.eigh(total - mean)  # others have values of at least 0, so the mean is the first
    return vectors[:, 1:].flip(1)


def _moments_of(net: Walk, readers: Mapping[str, list[str]], batches: Iterable[Batch]) -> dict[str, Tensor]:
    """Second moments of the normalised stream, without gains, at each norm."""
    sums: dict[str, Tensor] = {}

    def look(name: str):
        def hook(module: nn.LayerNorm, args: tuple) -> None:
            rows = nn.functional.layer_norm(args[0], module.normalized_shape, eps=module.eps).flatten(0, -2)
            sums[name] = sums.get(name, 0) + (rows.T @ rows).double()

        return hook

    norms = {name: net.backbone.get_submodule(name.removeprefix(BACKBONE)) for name in readers}
    handles = [norm.register_forward_pre_hook(look(name)) for name, norm in norms.items()]
    try:
        for batch in batches:
            net.activations(batch.images)
    finally:
        for handle in handles:
            handle.remove()
    if not sums:
        raise ValueError('there are no images: the principal axes of a stream are those of what it carries.')
    return {name: moment.cpu() for name, moment in sums.items()}
