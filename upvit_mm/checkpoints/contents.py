"""The content of a checkpoint file: its state dicts, the backbones in them, and which are averaged weights."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from upvit_mm.checkpoints.heads import head_of, is_head
from upvit_mm.checkpoints.layouts import LAYOUTS, OURS_MARKER, Layout
from upvit_mm.choices import WEIGHTS

logger = logging.getLogger('upvit_mm')
State = dict[str, Tensor]

# word in a file -> whether the file's maker evaluates these averages (then they are the default), and why
AVERAGES = {
    'state_dict_ema': (True, 'timm evaluates, ranks and loads the averages'),
    'model_ema': (False, "DeiT's main.py evaluates the raw weights only"),
    'ema': (True, 'RT-DETR and YOLO evaluate the averages'),
    'ema_state_dict': (True, 'FixMatch evaluates the averages'),
    'ema_model': (True, 'DINO-DETR evaluates the averages'),
    'teacher': (True, "DINO and mmdet's SemiBaseDetector evaluate the teacher, which is the average"),
    'target_encoder': (True, 'I-JEPA evaluates the target encoder, which is the average'),
    'momentum_encoder': (False, 'MoCo v3 evaluates the encoder that is trained'),
}
MMENGINE = (True, 'mmengine evaluates the averages, and its EMAHook saves them as state_dict')
# names around a whole model that say nothing about it: keys of files, and names of modules
WRAPPERS = ('state_dict', 'model_state_dict', 'model', 'module', 'net', 'network', 'encoder')
# parts that torch.compile, FSDP and activation checkpointing add to names, at any depth
INVISIBLE = {'_orig_mod', '_fsdp_wrapped_module', '_checkpoint_wrapped_module'}
OURS = Layout('ours', '', (OURS_MARKER,), ())
# how one begins
FIRST = ('patch_embed', 'pos_embed', 'cls_token', 'stages.0.patch_embed', 'layers.0.0.projection', 'embeddings')


@dataclass(frozen=True)
class Place:
    """Where a backbone is in a file.

    Attributes:
        node: keys that lead to its state dict, joined by dots; empty for the file itself.
        prefix: the text before its tensors' names there, with a dot at the end, or empty.
        tensors: the whole state dict.
        averages: entry of ``AVERAGES``, if these are averaged weights.
    """

    node: str
    prefix: str
    tensors: State
    averages: tuple[bool, str] | None = None

    @property
    def label(self) -> str:
        return f'{self.node}.{self.prefix}'.strip('.') or 'the names without a prefix'

    @property
    def plain(self) -> str:
        """The prefix without wrappers: ``'backbone.'`` or nothing in most files."""
        return [*_unwrapped(self.prefix)][-1]

    def is_below(self, prefix: str) -> bool:
        """Whether a prefix means this place, with or without the keys of the file, with or without wrappers."""
        names = [*_unwrapped(self.prefix), *_unwrapped(f'{self.node}.{self.prefix}'.lstrip('.'))]
        return any(name.startswith(prefix) for name in names)

    def backbone(self) -> State:
        """The backbone's tensors, with the names of its layout."""
        inside = {k[len(self.prefix) :]: v for k, v in self.tensors.items() if k.startswith(self.prefix)}
        return {k: v for k, v in inside.items() if not is_head(k)}

    def head(self) -> State:
        """The tensors of its head, with names like ``head.fc.weight``; empty when there is none."""
        return head_of(self.tensors, self.prefix)[1]

    def rest(self) -> State:
        """The other tensors of its state dict."""
        base, head = head_of(self.tensors, self.prefix)
        used = {f'{base}{k}' for k in head} | {f'{self.prefix}{k}' for k in self.backbone()}
        return {k: v for k, v in self.tensors.items() if k not in used}


def find_backbone(
    content: Mapping[str, Any], path: object, prefix: str | None = None, weights: str | None = None
) -> Place:
    """Where the backbone of a file is; one log line says so when averages or several backbones are in it.

    Args:
        content: of the file.
        path: of the file, for messages.
        prefix: the text before the backbone's keys; None finds it by the names of known layouts.
        weights: ``'ema'`` for averages, ``'raw'`` for the weights that were trained, None for those that the file's
            maker evaluates (see ``AVERAGES``).

    Raises:
        ValueError: no tensors, no key with the prefix, no such weights, or several backbones.
    """
    _check_choice(weights)
    nodes = _state_dicts(content)
    if prefix is None:
        places = [place for node in nodes for place in _places(node)] or _main(nodes, content, path)
        return _choose(places, places, weights, path)
    wanted = _clean(prefix if prefix.endswith('.') or not prefix else f'{prefix}.')
    known = [place for node in nodes for place in _marked(node)]
    places = [place for place in known if place.is_below(wanted)] or _literal(nodes, wanted)
    if not places:
        first = ', '.join([k for node in nodes for k in node.tensors][:5])
        raise ValueError(f'checkpoint {str(path)!r} has no key with prefix {wanted!r}; its first keys are {first}.')
    return _choose(places, known, weights, path)


def find_model(content: Mapping[str, Any], path: object, weights: str | None = None) -> Place:
    """Where the state dict of a whole model of any kind is; arguments and errors as in ``find_backbone``."""
    _check_choice(weights)
    places = _main(_state_dicts(content), content, path)
    return _choose(places, places, weights, path)


def _check_choice(weights: str | None) -> None:
    if weights not in (None, *WEIGHTS):
        raise ValueError(f'weights = {weights!r}: must be one of {", ".join(WEIGHTS)}, or left out.')


# ----------------------------------------------------------------- state dicts


def _state_dicts(content: Mapping[str, Any]) -> list[Place]:
    """Every mapping of a file that has tensors in it, without a prefix."""
    mmengine = 'steps' in (content.get('ema_state_dict') or ())  # counter of torch's averaged models
    found = []
    for node, tensors in _walk(content, ''):
        names = {_clean(k): v for k, v in tensors.items()}
        if len(names) < len(tensors):
            twice = sorted({k for k in tensors if _clean(k) != k and _clean(k) in tensors})
            raise ValueError(f'the file has tensors twice, with and without {", ".join(INVISIBLE)}: {twice[:3]}.')
        if mmengine and node in ('state_dict', 'ema_state_dict'):
            averages = MMENGINE if node == 'state_dict' else None
        else:
            averages = _averages(node)
        found.append(Place(node, '', names, averages))
    return found


def _walk(content: Mapping[str, Any], node: str, depth: int = 4) -> Iterator[tuple[str, State]]:
    tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if tensors:
        yield node, tensors
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, Mapping) and depth:
            yield from _walk(value, f'{node}.{key}'.lstrip('.'), depth - 1)


def _main(nodes: list[Place], content: Mapping[str, Any], path: object) -> list[Place]:
    """The state dicts of whole models, where no known layout shows where a backbone is."""
    known = [n for n in nodes if all(key in WRAPPERS or key in AVERAGES for key in n.node.split('.'))]
    found = known or [n for n in nodes if not n.node]
    if not found:
        keys = ', '.join(map(str, list(content)[:5]))
        raise ValueError(f'checkpoint {str(path)!r} holds no tensors; its keys are: {keys or "none"}.')
    return [_with_prefix(node, _usual_prefix(node.tensors)) for node in found]


# -------------------------------------------------------------------- prefixes


def _places(node: Place) -> list[Place]:
    """The backbones of a state dict; if it has a ``backbone.`` of an unknown layout, that one."""
    usual, found = _usual_prefix(node.tensors), _marked(node)
    if found and usual.endswith('backbone.') and not any(p.plain.startswith('backbone.') for p in found):
        return [_with_prefix(node, usual)]
    return found


def _marked(node: Place) -> list[Place]:
    """The backbones of known layouts in a state dict."""
    names = node.tensors
    prefixes = {prefix for layout in (OURS, *LAYOUTS) for prefix in layout.prefixes(names)}
    begin = {p: tuple(f'{p}{first}' for first in FIRST) for p in prefixes}
    # a hierarchical network has a marker in each of its stages, and begins before them
    return [_with_prefix(node, p) for p in sorted(prefixes) if any(k.startswith(begin[p]) for k in names)]


def _literal(nodes: list[Place], wanted: str) -> list[Place]:
    """The places of a prefix in the names."""
    found = {}
    for node in nodes:
        for key in node.tensors:
            for name in _unwrapped(key):
                if name.startswith(wanted):
                    found[node.node, key.removesuffix(name) + wanted] = node
    return [_with_prefix(node, prefix) for (_, prefix), node in found.items()]


def _usual_prefix(names: Mapping[str, Tensor]) -> str:
    """The wrappers that all names share, and ``backbone.`` if it follows in some of them."""
    prefix = ''
    while common := next((w for w in WRAPPERS if all(k.startswith(f'{prefix}{w}.') for k in names)), None):
        prefix = f'{prefix}{common}.'
    return f'{prefix}backbone.' if any(k.startswith(f'{prefix}backbone.') for k in names) else prefix


def _with_prefix(node: Place, prefix: str) -> Place:
    return Place(node.node, prefix, node.tensors, node.averages or _averages(prefix))


def _unwrapped(name: str) -> Iterator[str]:
    """A name, then the same name after each wrapper is removed, one after the other."""
    yield name
    while name.partition('.')[0] in WRAPPERS:
        name = name.partition('.')[2]
        yield name


def _clean(name: str) -> str:
    return '.'.join(word for word in name.split('.') if word not in INVISIBLE)


def _averages(name: str) -> tuple[bool, str] | None:
    return next((AVERAGES[word] for word in name.split('.') if word in AVERAGES), None)


# ---------------------------------------------------------------------- choice


def _choose(places: list[Place], known: list[Place], weights: str | None, path: object) -> Place:
    """One of ``places``, which are some of the file's ``known`` places."""
    averaged, raw = [p for p in places if p.averages], [p for p in places if not p.averages]
    kept, reason = places, 'the only ones below this prefix' if len(known) > len(places) else 'there are no others'
    if weights:
        kept, reason = (averaged if weights == 'ema' else raw), 'as asked'
        if not kept:
            missing = 'averages' if weights == 'ema' else 'weights but averages'
            raise ValueError(
                f'weights = {weights!r}: checkpoint {str(path)!r} holds no {missing}, it has {_listed(places)}; leave '
                'weights out.'
            )
    elif _are_pairs(averaged, raw):
        evaluated, reason = averaged[0].averages
        kept = averaged if evaluated else raw
    if len(kept) > 1:
        kept = [p for p in kept if p.plain == 'backbone.'] or kept
        reason = 'named backbone'
    if len(kept) > 1:
        raise ValueError(
            f'checkpoint {str(path)!r} holds {len(kept)} backbones, {_listed(kept)}: choose one with prefix'
            + (", or weights='ema' or 'raw'." if averaged and raw else '.')
        )
    if any(p.averages for p in known) or len(known) > 1:
        _report(kept[0], known, reason, path)
    return kept[0]


def _report(taken: Place, known: list[Place], reason: str, path: object) -> None:
    other = 'raw' if taken.averages else 'ema'
    text = f'{path}: holds {_listed(known)}; takes {taken.label} ({reason})'
    if any(bool(p.averages) != bool(taken.averages) for p in known):
        text += f'; weights={other!r}, or convert_checkpoint.py --weights {other}, takes the others'
    logger.info(text)


def _listed(places: list[Place]) -> str:
    averaged, raw = [p.label for p in places if p.averages], [p.label for p in places if not p.averages]
    kinds = (('averages', averaged), ('raw weights' if averaged else 'weights', raw))
    return ' and '.join(f'{kind} ({", ".join(labels)})' for kind, labels in kinds if labels)


def _are_pairs(averaged: list[Place], raw: list[Place]) -> bool:
    """Whether these are weights and their averages: equal shapes, and for a teacher its student."""
    teachers = any(place.averages == AVERAGES['teacher'] for place in averaged)
    students = all('student' in place.label.split('.') for place in raw)
    alike = len({_shapes(place) for place in (*averaged, *raw)}) == 1
    return bool(averaged and raw) and alike and (students or not teachers)


def _shapes(place: Place) -> frozenset:
    return frozenset((k, v.shape) for k, v in place.backbone().items())
