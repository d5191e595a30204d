"""Backbones: ours with fast and with plain layers, timm's and mmdet's; forward passes and training steps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from upvit_mm.arch import ArchSpec, resolve_arch
from upvit_mm.arch.size import Windows
from upvit_mm.benchmark.gpu.notebook import Notebook, one_line
from upvit_mm.benchmark.gpu.setting import Setting
from upvit_mm.benchmark.gpu.timing import AMP, time_variants
from upvit_mm.benchmark.latency import check_compiler
from upvit_mm.benchmark.rivals import build_backbones, rivals_of
from upvit_mm.models import build_backbone
from upvit_mm.models.layers.fast_paths import plain_paths
from upvit_mm.pruning.budget import Budget
from upvit_mm.pruning.knobs import Grain
from upvit_mm.pruning.spending import target_for_budget
from upvit_mm.stopwatch import SEED, forward_step, noise, training_step

STEPS = {'forward': forward_step, 'training': training_step}
Act = Callable[[nn.Module, Tensor], None]  # one forward pass or training step


def measure_pyramids(setting: Setting, device: str, notebook: Notebook) -> None:
    """Time our PVTv2 beside timm's and mmdet's, all with the same weights."""
    for name in setting.pyramids:
        arch = resolve_arch(name)
        _measure(setting, device, notebook, arch, _with_rivals(arch, device, notebook))


def measure_plain(setting: Setting, device: str, notebook: Notebook) -> None:
    """Time our DeiT with global attention and with windows, and timm's."""
    arch = resolve_arch(setting.plain)
    models = _with_rivals(arch, device, notebook)
    windows = build_backbone(arch, **Windows(setting.window).settings).eval()
    windows.load_state_dict(models['ours'].state_dict())
    _measure(setting, device, notebook, arch, {**models, 'ours windows': windows.to(device)})


def measure_compiled(setting: Setting, device: str, notebook: Notebook) -> None:
    """Time our PVTv2 and timm's, both compiled for this size; forward passes of all networks come first."""
    if setting.backend == 'inductor':  # of the others, eager compiles nothing
        check_compiler(device)
    for work in setting.compiled:
        batch = setting.forward_batches[0] if work == 'forward' else setting.training_batch
        for name in setting.pyramids:
            torch.compiler.reset()  # with many shapes torch would stop compiling
            arch = resolve_arch(name)
            models = _with_rivals(arch, device, notebook, only='timm')
            x, step = noise(batch, setting.size, device), partial(STEPS[work], amp=AMP['bf16'])
            variants = {}
            for known, model in models.items():
                compiled = torch.compile(model, backend=setting.backend, dynamic=False)
                variants[f'{known} compiled'] = partial(step, compiled, x)
            labels = {'work': work, 'network': arch.name, 'batch': batch, 'precision': 'bf16'}
            time_variants(notebook, variants, setting.repeats, device, **labels)


def measure_halves(setting: Setting, device: str, notebook: Notebook) -> None:
    """Time networks with half the multiply-accumulates beside the dense ones; all widths shrink alike."""
    height, width = setting.size
    budget, batch = Budget.parse(f'macs=50%@{height}x{width}'), setting.forward_batches[0]
    x, step = noise(batch, setting.size, device), partial(forward_step, amp=AMP['bf16'])
    for name in (setting.pyramids[-1], setting.plain):
        torch.manual_seed(SEED)
        dense = resolve_arch(name)
        half = target_for_budget(dense, budget, Grain(setting.round_to, tie_qkv=True))
        models = {'dense': build_backbone(dense), 'half the MACs': build_backbone(half)}
        variants = {key: partial(step, model.eval().to(device), x) for key, model in models.items()}
        labels = {'work': 'forward', 'network': dense.name, 'batch': batch, 'precision': 'bf16'}
        time_variants(notebook, variants, setting.repeats, device, **labels)


def _with_rivals(arch: ArchSpec, device: str, notebook: Notebook, only: str | None = None) -> dict[str, nn.Module]:
    """``'ours'`` and the rivals that are installed, by name."""
    models: dict[str, nn.Module] = {}
    for rival in rivals_of(arch.family):
        if only in (None, rival):
            torch.manual_seed(SEED)  # so that ours is the same each time
            try:
                models |= build_backbones(arch, [rival])
            except ImportError as error:
                notebook.note(f'{rival} is not measured ({one_line(error)}).')
    if not models:
        models = build_backbones(arch, [])
    return {name: model.to(device) for name, model in models.items()}


def _measure(setting: Setting, device: str, notebook: Notebook, arch: ArchSpec, models: dict[str, nn.Module]) -> None:
    loads = [('forward', batch) for batch in setting.forward_batches] + [('training', setting.training_batch)]
    channels_last = copy.deepcopy(models['timm']).to(memory_format=torch.channels_last) if 'timm' in models else None
    for precision, amp in AMP.items():
        for work, batch in loads:
            step, x = partial(STEPS[work], amp=amp), noise(batch, setting.size, device)
            variants = {name: partial(step, model, x) for name, model in models.items()}
            variants['ours plain'] = partial(_plainly, step, models['ours'], x)
            if channels_last is not None:
                nhwc = x.contiguous(memory_format=torch.channels_last)
                variants['timm channels-last'] = partial(step, channels_last, nhwc)
            labels = {'work': work, 'network': arch.name, 'batch': batch, 'precision': precision}
            time_variants(notebook, variants, setting.repeats, device, **labels)


def _plainly(step: Act, model: nn.Module, x: Tensor) -> None:
    with plain_paths():
        step(model, x)
