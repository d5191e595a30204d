"""Our backbone in the place of the one that a detector's config names, if that computes the same."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.registry import MODELS as ALL_MODELS
from torch import Tensor, nn

from upvit_mm.arch import ArchSpec, resolve_arch
from upvit_mm.arch.family import FAMILIES, Family, family_named
from upvit_mm.checkpoints import detect_layout, to_ours
from upvit_mm.registry import MODELS, backbone_types, class_of, families_of, type_name

SHARED = ('out_indices', 'drop_path_rate', 'frozen_stages', 'with_cp')  # settings of the same meaning
LAYER_SCALES = ('.gamma1.weight', '.gamma2.weight')  # of mmpretrain's VisionTransformer
TOLERANCE = 1e-2  # relative; mmdet's eps of some norms is another (1e-6 for 1e-5)


def own_backbone(settings: Mapping[str, Any], scope: str = 'mmdet') -> dict[str, Any]:
    """Settings of our backbone for those of a detector's backbone, without start weights; ``arch`` is a dict.

    Args:
        settings: ``model.backbone`` of a config: one of ours, or a class of mmdet or mmpretrain that builds the same
            networks (``Family.upstream``).
        scope: the config's ``default_scope``.

    Raises:
        ValueError: another type, or settings with which it computes something else.
    """
    kind = settings.get('type')
    if families := families_of(kind, scope):
        if settings.get('arch') is None:
            raise ValueError(f"model.backbone.arch of {kind}: is missing; name one, as arch='pvtv2-b0'.")
        arch = resolve_arch(settings['arch'], families)
        own = {key: value for key, value in settings.items() if key not in ('init_cfg', '_scope_')}
        name = type_name(kind)
        if name not in MODELS.module_dict:  # a subclass of the user's, in the registry of the user's scope
            return own | {'type': kind if '.' in str(kind) else f'{scope}.{name}', 'arch': arch.to_dict()}
        return own | {'type': f'upvit_mm.{name}', 'arch': arch.to_dict()}
    upstream = list(dict.fromkeys(name for family in FAMILIES.values() for name in family.upstream))
    cls = class_of(kind, ALL_MODELS, scope)
    if cls is None or cls.__name__ not in upstream:
        raise ValueError(
            f'model.backbone.type = {kind!r}: cannot be pruned; known are {backbone_types()}, and what they replace: '
            f'{", ".join(upstream)}.'
        )
    try:
        return _converted(cls, settings, scope)
    except ValueError as error:
        raise ValueError(f'model.backbone of type {kind!r} does not convert: {error}') from error


def _converted(cls: type, settings: Mapping[str, Any], scope: str) -> dict[str, Any]:
    plain = {k: v for k, v in settings.items() if k not in ('init_cfg', 'pretrained')}
    with torch.random.fork_rng(devices=[]), ALL_MODELS.switch_scope_and_registry(scope) as registry:
        theirs = registry.build(plain)
    theirs.eval()  # mmpretrain's returns nothing
    for name, parameter in theirs.named_parameters():
        if name.endswith(LAYER_SCALES):
            parameter.data.fill_(1)  # it starts near 0, and would hide what the blocks compute
    given = theirs.state_dict()
    family, state = family_named(detect_layout(given).family), to_ours(given)
    arch = _arch_of(theirs, state, family)
    shared = {name: value for name in SHARED if (value := settings.get(name, _default(cls, name))) is not None}
    if shared.get('frozen_stages') == 0:
        shared['frozen_stages'] = -1  # mmpretrain's freezes nothing then, and ours the embedding
    own = {'type': f'upvit_mm.{family.backbone}', 'arch': arch.to_dict()} | shared
    with torch.random.fork_rng(devices=[]):
        ours = MODELS.build(own).eval()
    ours.load_state_dict(state)
    if (distance := _distance(ours, theirs)) > TOLERANCE:
        raise ValueError(f'its maps differ by {distance:.0e}; a setting is one that {family.backbone} does not have.')
    return own


def _default(cls: type, name: str) -> Any:
    """The default of a setting, maybe of a base class; None where there is none."""
    for base in cls.__mro__:
        parameter = inspect.signature(base.__init__).parameters.get(name)
        if parameter is not None:
            return None if parameter.default is parameter.empty else parameter.default
    return None


def _arch_of(theirs: nn.Module, state: Mapping[str, Tensor], family: Family) -> ArchSpec:
    """The architecture of a stock backbone, from its tensors; its heads from its modules."""
    heads = [m.num_heads for name, m in theirs.named_modules() if _is_attention(name, m)]
    depths, widths, hidden, ratios = [], [], [], []
    for i in range(family.num_stages):
        fc1 = [v for k, v in state.items() if k.startswith(f'stages.{i}.blocks.') and k.endswith('.mlp.fc1.weight')]
        depths.append(len(fc1))
        widths.append(len(state[f'stages.{i}.patch_embed.proj.weight']))
        hidden.append([len(v) for v in fc1])
        reduction = state.get(f'stages.{i}.blocks.0.attn.sr.weight')
        ratios.append(1 if reduction is None else reduction.shape[-1])
    if len(heads) != sum(depths):
        raise ValueError(f'{len(heads)} attention layers are found for {sum(depths)} blocks.')
    places = iter(heads)
    patches = state['stages.0.patch_embed.proj.weight']
    settings = {'in_channels': patches.shape[1]}
    if 'reg_token' in state:
        settings['num_registers'] = state['reg_token'].shape[1]
    if 'stages.0.blocks.0.mlp.gate.weight' in state:
        settings['ffn'] = 'swiglu'
    if 'pos_embed' in state:
        side = round((state['pos_embed'].shape[1] - family.num_class_tokens) ** 0.5)
        settings |= {'patch_size': patches.shape[-1], 'img_size': side * patches.shape[-1]}
    return ArchSpec(
        family=family.name,
        embed_dims=tuple(widths),
        depths=tuple(depths),
        num_heads=tuple(tuple(next(places) for _ in range(depth)) for depth in depths),
        mlp_hidden_dims=tuple(map(tuple, hidden)),
        sr_ratios=tuple(ratios),
        **settings,
    )


def _is_attention(name: str, module: nn.Module) -> bool:
    inner = isinstance(module, nn.MultiheadAttention)  # of mmcv's wrapper, which has the same heads
    return name.endswith('attn') and hasattr(module, 'num_heads') and not inner


@torch.no_grad()
def _distance(ours: nn.Module, theirs: nn.Module) -> float:
    """Largest difference of their maps, in units of the largest value."""
    side = 2 * ours.smallest_side if ours.arch.kind.is_pyramid else ours.arch.img_size
    image = torch.randn(1, ours.arch.in_channels, side, side, generator=torch.Generator().manual_seed(0))
    maps = list(zip(ours(image), theirs(image)))
    if any(a.shape != b.shape for a, b in maps):
        raise ValueError("its outputs are no maps of the same shape; set out_type='featmap'.")
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in maps)
