"""Measure the token consistency with a dense backbone during a training."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook, LoggerHook
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import Tensor

from upvit_mm.arch import resolve_arch
from upvit_mm.checkpoints import load_backbone
from upvit_mm.consistency import StageMetrics, common_stages, paired_tokens
from upvit_mm.hooks.unwrapped import model_of
from upvit_mm.models import build_backbone
from upvit_mm.models.backbones.base import UPBackbone
from upvit_mm.models.layers.grid import map_to_tokens
from upvit_mm.models.network import maps_of
from upvit_mm.registry import HOOKS, backbone_types

MAX_SHARE = 0.05  # share of an epoch's time


@HOOKS.register_module()
class TokenConsistencyHook(Hook):
    """Compare the backbone in training with its dense source, before the first epoch and after epochs.

    It always uses the same few validation images and compares the tokens of every stage as in ``upvit_mm.consistency``.
    The results ``consistency/stage3_cka``, ``..._cka_within`` and ``..._relation`` (DeiT: ``block11_...``) go to all
    backends of the runner's visualizer, with the number of finished epochs (iterations) as step, to its JSON log and to
    its message hub. The dense backbone runs once, at the start, and is then deleted: only a sample of its tokens is
    kept, on the CPU.

    Note:
        Only the first process measures, with the weights in training, not their moving average. Images pass through the
        validation pipeline and the model's own preprocessing; the dense backbone gets the same images.

    Args:
        arch: architecture of the dense backbone: stock name, ``arch.json``, or mapping.
        checkpoint: its weights, in any layout that ``upvit_mm.checkpoints`` knows.
        settings: more settings of the dense backbone; for a DeiT in windows ``dict(window_size=14)``, like the model's.
        interval: epochs (iterations) from one measurement to the next; the last one is always measured.
        by_epoch: whether ``interval`` counts epochs.
        num_images: number of images, evenly spread over the validation set.
        max_tokens: tokens per image and stage, drawn at random once.
        seed: seed of the drawing.

    Raises:
        FileNotFoundError: no such arch file or checkpoint.
        ValueError: at the start of the training, if the model has no backbone of ours, if family or stride differ from
            the dense one, if there are no validation data, or if a checkpoint does not fit.
    """

    def __init__(
        self,
        arch: str | Mapping[str, Any],
        checkpoint: str,
        settings: Mapping[str, Any] | None = None,
        interval: int = 1,
        by_epoch: bool = True,
        num_images: int = 8,
        max_tokens: int = 1024,
        seed: int = 0,
    ):
        for name, value in (('interval', interval), ('num_images', num_images), ('max_tokens', max_tokens)):
            if value < 1:
                raise ValueError(f'{name} = {value}: must be at least 1.')
        self.arch = resolve_arch(arch)
        self.checkpoint, self.settings = checkpoint, dict(settings or {})
        self.interval, self.by_epoch = interval, by_epoch
        self.num_images, self.max_tokens, self.seed = num_images, max_tokens, seed
        self._images: list[Tensor] = []
        self._expected: list[list[tuple[Tensor, Tensor]]] = []  # by image and stage: places on the grid, dense tokens
        self._since = 0.0

    def before_train(self, runner: Runner) -> None:
        if not is_main_process():
            return
        if self.by_epoch and isinstance(runner.train_loop, IterBasedTrainLoop):
            raise ValueError('this training counts iterations: give TokenConsistencyHook by_epoch=False, interval=...')
        self._prepare(runner)
        if runner.iter == 0:
            self._measure(runner, 0)

    def before_train_epoch(self, runner: Runner) -> None:
        self._since = time.monotonic()

    def after_train_epoch(self, runner: Runner) -> None:
        if self.by_epoch and (self.every_n_epochs(runner, self.interval) or self.is_last_train_epoch(runner)):
            self._measure(runner, runner.epoch + 1)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if not self.by_epoch and (self.every_n_train_iters(runner, self.interval) or self.is_last_train_iter(runner)):
            self._measure(runner, runner.iter + 1)

    @torch.no_grad()
    def _prepare(self, runner: Runner) -> None:
        """Choose images and tokens, and keep the dense backbone's output for them."""
        backbone = _backbone(runner)
        self._labels, (dense_indices, self._indices) = common_stages([self.arch, backbone.arch])
        if runner.val_loop is None:
            raise ValueError('TokenConsistencyHook needs validation images: set val_dataloader in the config.')
        dataset = runner.val_dataloader.dataset
        count = min(self.num_images, len(dataset))
        self._images = [dataset[k * len(dataset) // count]['inputs'] for k in range(count)]
        with torch.random.fork_rng(devices=[]):  # the training continues as without this hook
            dense = build_backbone(self.arch, **self.settings)
        dense.load_state_dict(load_backbone(self.checkpoint, arch=self.arch))
        dense = dense.to(next(backbone.parameters()).device).eval()
        generator = torch.Generator().manual_seed(self.seed)
        self._expected = []
        with _evaluating(backbone):
            for image in self._images:
                inputs = _preprocess(runner, image)
                theirs, ours = maps_of(dense, inputs, dense_indices), maps_of(backbone, inputs, self._indices)
                stages = []
                for tokens, _ in paired_tokens(theirs, ours, self._labels):
                    places = torch.randperm(tokens.shape[1], generator=generator)[: self.max_tokens].to(tokens.device)
                    stages.append((places, tokens[:, places].cpu()))
                self._expected.append(stages)

    @torch.no_grad()
    def _measure(self, runner: Runner, step: int) -> None:
        if not is_main_process():
            return
        started, backbone = time.monotonic(), _backbone(runner)
        stages = [StageMetrics(seed=self.seed) for _ in self._labels]
        with _evaluating(backbone):
            for image, expected in zip(self._images, self._expected):
                maps = maps_of(backbone, _preprocess(runner, image), self._indices)
                for metrics, feature_map, (places, tokens) in zip(stages, maps, expected):
                    metrics.update(tokens.to(feature_map), map_to_tokens(feature_map)[:, places])
        self._log(runner, step, stages, started)

    def _log(self, runner: Runner, step: int, stages: list[StageMetrics], started: float) -> None:
        values = {
            f'consistency/{label}_{name}': value
            for label, metrics in zip(self._labels, stages)
            for name, value in metrics.compute().items()
        }
        files = [hook.json_log_path for hook in runner.hooks if isinstance(hook, LoggerHook)]
        runner.visualizer.add_scalars(values, step=step, file_path=files[0] if files else None)
        for name, value in values.items():
            runner.message_hub.update_scalar(name, value)
        now = time.monotonic()
        cka = ', '.join(f'{label} {values[f"consistency/{label}_cka"]:.4f}' for label in self._labels)
        text = f'token consistency, CKA with the dense backbone: {cka} ({now - started:.1f} s'
        level = logging.INFO
        if step:
            share = (now - started) / max(started - self._since, 1e-9)
            text += f', {100 * share:.1f} % of {"the epoch" if self.by_epoch else "the training since the last time"}'
            if share > MAX_SHARE * (self.interval if self.by_epoch else 1):
                level, text = logging.WARNING, f'{text}; to save time, raise interval or lower num_images'
        runner.logger.log(level, f'{text})')  # no arguments: mmengine drops repeated formats
        self._since = now


@contextlib.contextmanager
def _evaluating(backbone: UPBackbone) -> Iterator[None]:
    """Evaluation mode inside the ``with`` block."""
    training = backbone.training
    backbone.eval()
    try:
        yield
    finally:
        backbone.train(training)


def _preprocess(runner: Runner, image: Tensor) -> Tensor:
    """One image ``(3, h, w)`` of the data set after preprocessing: ``(1, 3, h', w')``, not padded to others."""
    return model_of(runner).data_preprocessor({'inputs': [image], 'data_samples': None}, False)['inputs']


def _backbone(runner: Runner) -> UPBackbone:
    backbone = getattr(model_of(runner), 'backbone', None)
    if not isinstance(backbone, UPBackbone):
        raise ValueError(
            f'model.backbone is {type(backbone).__name__}: TokenConsistencyHook compares {backbone_types()} only; use '
            'one of them, or leave the hook out.'
        )
    return backbone
