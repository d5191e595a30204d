"""Load the weights that a run starts from (without resuming), and name what does not fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmengine.hooks import Hook
from mmengine.model import BaseModule
from mmengine.runner import Runner
from torch import Tensor, nn

from upvit_mm.checkpoints import check_arch_of, check_state, is_harmless, model_state, read_checkpoint
from upvit_mm.checkpoints.variants import named_remedy
from upvit_mm.data.checks import check_classes_of
from upvit_mm.hooks.resume_check import source_of
from upvit_mm.hooks.unwrapped import model_of
from upvit_mm.models.backbones.base import UPBackbone, split_pretrained
from upvit_mm.registry import HOOKS


@dataclass(frozen=True)
class Misfit:
    """A tensor that does not load.

    Attributes:
        name: name of the tensor.
        kind: ``'missing'``, ``'extra'`` or ``'of another shape'``.
        detail: a description.
    """

    name: str
    kind: str
    detail: str

    @property
    def part(self) -> str:
        return self.name.partition('.')[0]


@HOOKS.register_module()
class CheckLoaded(Hook):
    """Load ``load_from`` with the model's own names; refuse or name what does not fit.

    mmengine only logs it. Other layouts of our backbones and of linear heads are converted. If a file states its
    architecture, it is compared with the backbone; this includes resumed files.

    Args:
        part: the part that runs. ``'test'`` and ``'val'`` need a file that fits completely and has learned the same
            classes. In ``'train'`` one warning names parts and counts, because heads may be trained from scratch; our
            backbones must fit.
        weights: ``'ema'`` or ``'raw'`` where the file has both; None takes those that its maker evaluates.
        allow_missing: for tests: names of parts, for example ``'bbox_head'``, whose tensors may be missing or of
            another shape; they keep their random values, and a warning names them.

    Raises:
        ValueError: tensors do not fit; the message has counts by part, the first names, and what to do.
    """

    priority = 'VERY_HIGH'  # before EMAHook copies the weights

    def __init__(self, part: str, weights: str | None = None, allow_missing: Sequence[str] = ()):
        self.part, self.weights = part, weights
        self.allow_missing = tuple(f'{prefix.rstrip(".")}.' for prefix in allow_missing)

    def before_train(self, runner: Runner) -> None:
        """Compare the arch of a checkpoint that mmengine itself has loaded for ``model.init_cfg``."""
        model = model_of(runner)
        loads_itself = type(model).init_weights is not BaseModule.init_weights
        if runner._resume or runner._load_from or loads_itself:
            return
        for config in split_pretrained(model.init_cfg)[0]:
            try:
                content = read_checkpoint(config['checkpoint'])
            except (FileNotFoundError, ValueError) as error:  # files that only mmengine reads
                runner.logger.warning(f'model.init_cfg: its architecture is not compared: {error}')
                continue
            for backbone in _backbones(model).values():
                check_arch_of(content, backbone.arch, config['checkpoint'])

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        model = model_of(runner)
        path = str(source_of(runner))
        for backbone in _backbones(model).values():
            check_arch_of(checkpoint, backbone.arch, path)
        if not runner._resume:
            self._load(runner, model, checkpoint, path)
        anew = bool(self.allow_missing) or (self.part == 'train' and not runner._resume)
        check_classes_of(checkpoint.get('meta') or {}, runner.cfg, self.part, path, heads_anew=anew)

    def _load(self, runner: Runner, model: nn.Module, checkpoint: dict, path: str) -> None:
        backbones, strict = _backbones(model), self.part != 'train'
        own = model.state_dict()
        archs = {prefix: backbone.arch for prefix, backbone in backbones.items()}
        state = model_state(checkpoint, own, archs, path, self.weights)
        state |= self._allowed(runner, state, own)
        misfits = _misfits(state, own)
        # modules may rename tensors while they load; our backbones refuse before the others are named
        if not state.keys() & own.keys() or not any(m.name.startswith(tuple(backbones)) for m in misfits):
            misfits = _load_fitting(model, state, misfits)
        elif not strict:
            for prefix, backbone in backbones.items():
                check_state(_below(prefix, state), backbone.state_dict(), f'{prefix.rstrip(".")} (checkpoint={path})')
        misfits = [m for m in misfits if not is_harmless(m.name, extra=m.kind == 'extra')]
        if (strict and misfits) or sum(m.kind == 'missing' for m in misfits) == len(own):
            remedies = [named_remedy(_below(p, state), m.state_dict()) for p, m in backbones.items()]
            raise ValueError(_refusal(misfits, len(own), path, next(filter(None, remedies), None)))
        if misfits:
            runner.logger.warning(
                f'{path}: {len(misfits)} tensors do not load, and the parts that lack them start at random '
                f'({_counts(misfits)}). This is right for heads that learn other classes.'
            )
        checkpoint['state_dict'] = model.state_dict()  # for mmengine and EMAHook, which load it again

    def _allowed(self, runner: Runner, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The model's own tensors for parts that may be missing."""
        allowed: dict[str, Tensor] = {}
        for prefix in self.allow_missing:
            below = [k for k in own if k.startswith(prefix) or f'{k}.' == prefix]
            found = [k for k in below if k not in state or state[k].shape != own[k].shape]
            if not below:
                parts = ', '.join({k.partition('.')[0]: None for k in own})
                raise ValueError(f'--allow-missing {prefix[:-1]}: the model has no such part; it has {parts}.')
            if found:
                names = ', '.join(found[:5]) + (', ...' if len(found) > 5 else '')
                text = f'{len(found)} tensors are missing or of another shape and stay random: {names}'
            else:
                text = 'ignored, all tensors are in the checkpoint'
            runner.logger.warning(f'--allow-missing {prefix[:-1]}: {text}.')
            allowed |= {k: own[k] for k in found}
        return allowed


def _backbones(model: nn.Module) -> dict[str, UPBackbone]:
    """Our backbones in a model, by the text before the names of their tensors."""
    return {f'{name}.': module for name, module in model.named_modules() if isinstance(module, UPBackbone)}


def _misfits(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[Misfit]:
    shapes = [
        Misfit(k, 'of another shape', f'{k} has shape {tuple(state[k].shape)}, the model {tuple(v.shape)}')
        for k, v in own.items()
        if k in state and state[k].shape != v.shape
    ]
    missing = [Misfit(k, 'missing', f'{k} is missing') for k in own if k not in state]
    extra = [Misfit(k, 'extra', f'{k} is not in the model') for k in state if k not in own]
    return shapes + missing + extra


def _load_fitting(model: nn.Module, state: Mapping[str, Tensor], misfits: list[Misfit]) -> list[Misfit]:
    """Load what fits; modules may know older names of their tensors, so their renaming counts."""
    shapes = [m for m in misfits if m.kind == 'of another shape']
    wrong = {m.name for m in shapes}
    done = model.load_state_dict({k: v for k, v in state.items() if k not in wrong}, strict=False)
    missing = [Misfit(k, 'missing', f'{k} is missing') for k in done.missing_keys if k not in wrong]
    return shapes + missing + [Misfit(k, 'extra', f'{k} is not in the model') for k in done.unexpected_keys]


def _refusal(misfits: list[Misfit], count: int, path: str, remedy: str | None) -> str:
    first = f'{"; ".join(m.detail for m in misfits[:5])}{"; ..." if len(misfits) > 5 else ""}'
    default = (
        'Use the config that the file was trained with; tools/test.py --allow-missing PREFIX leaves parts of the model '
        'random on purpose.'
    )
    return (
        f'checkpoint {path!r} does not fit the model of the config: {len(misfits)} tensors are missing, extra or of '
        f'another shape (the model has {count}), in {_counts(misfits)}: {first}. {remedy or default}'
    )


def _counts(misfits: list[Misfit]) -> str:
    counts = Counter((m.part, m.kind) for m in misfits)
    return ', '.join(f'{part}: {number} {kind}' for (part, kind), number in counts.items())


def _below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
