"""Gates: 0/1 (or any) multipliers on the channels of a dense network, through hooks that are removed completely.

A gate of 0 computes what the network without that channel computes:

- ``mlp_hidden`` and ``v``: the input of ``mlp.fc2`` and of ``attn.proj`` is multiplied;
- ``qk``: the queries are multiplied, so the channel adds nothing to the logits (their scale stays);
- ``embed``: the residual stream is read only through LayerNorms, so each of them takes its statistics over the kept
  channels only and gives 0 for the others;
- ``embed`` of a turned stream (``stream_axes.py``): directions are multiplied before each norm reads the stream;
- ``depth`` (see ``depth.py``): the output of ``attn`` or of ``mlp`` is multiplied.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor, nn

from upvit_mm.pruning.cosines import cosines

Handle = torch.utils.hooks.RemovableHandle


@contextlib.contextmanager
def gates(backbone: nn.Module, values: Mapping[str, Tensor], turned: Collection[str] = ()) -> Iterator[None]:
    """Gate a backbone inside the ``with`` block and restore it exactly after it.

    Args:
        backbone: ``UPPVTv2`` or ``UPDeiT`` (any module with their names).
        values: gate by dim name, or by ``stages.i.blocks.j.attn`` / ``.mlp`` for a branch. A gate broadcasts against
            tokens ``(B, N, C)``: ``(C,)`` for all images, ``(B, 1, C)`` separately for each image (or candidate); for a
            branch the last size is 1 instead of ``C``. Gates may require gradients.
        turned: names of the ``embed`` dims whose gates are those of directions.

    Raises:
        ValueError: a name that the backbone does not have.
    """
    handles: list[Handle] = []
    try:
        for name, gate in values.items():
            handles += _attach(backbone, name, gate, name in turned)
        yield
    finally:
        for handle in handles:
            handle.remove()


def _attach(backbone: nn.Module, name: str, gate: Tensor, is_turned: bool) -> list[Handle]:
    parent, _, kind = name.rpartition('.')
    try:
        module = backbone.get_submodule(parent)
        if kind == 'embed':
            norms = [m for m in module.modules() if isinstance(m, nn.LayerNorm)]
            if is_turned:
                hook = _gated_directions(gate)
                return [norm.register_forward_pre_hook(hook) for norm in norms]
            return [norm.register_forward_hook(_gated_norm(gate)) for norm in norms]
        if kind == 'mlp_hidden':
            return [module.mlp.fc2.register_forward_pre_hook(_gated_input(gate))]
        if kind == 'v':
            return [module.attn.proj.register_forward_pre_hook(_gated_input(gate))]
        if kind == 'qk':
            return [module.attn.q.register_forward_hook(_gated_output(gate))]
        if kind in ('attn', 'mlp'):
            return [getattr(module, kind).register_forward_hook(_gated_output(gate))]
    except AttributeError as error:
        raise ValueError(f'gate {name!r}: the backbone has no such dim ({error}).') from error
    raise ValueError(f'gate {name!r}: must end in embed, qk, v, mlp_hidden, attn or mlp.')


def _gated_input(gate: Tensor):
    return lambda module, args: (args[0] * gate, *args[1:])


def _gated_output(gate: Tensor):
    return lambda module, args, output: output * gate


def _gated_directions(gate: Tensor):
    """The stream without a share of its directions; its mean is 0 and stays 0. Never in a lower precision, because the
    stream runs through it."""
    directions = cosines(gate.shape[-1]).to(gate.device, non_blocking=True)  # (C, C)

    def hook(module: nn.LayerNorm, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (x,) = args
        rows = directions.to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            return (((x @ rows.T) * gate) @ rows,)

    return hook


def _gated_norm(gate: Tensor):
    """LayerNorm over the kept channels; others give 0.

    With gates in {0, 1} this is the norm of the smaller network. Between 0 and 1 it is smooth; the Fisher estimate
    needs its slope at 1.
    """

    def hook(module: nn.LayerNorm, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = args[0]
        kept = gate.sum(-1, keepdim=True)
        mean = (x * gate).sum(-1, keepdim=True) / kept
        centred = x - mean
        variance = (centred.square() * gate).sum(-1, keepdim=True) / kept
        return (centred * torch.rsqrt(variance + module.eps) * module.weight + module.bias) * gate

    return hook
