"""Stop a training whose loss is NaN or infinite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from upvit_mm.hooks.unwrapped import model_of
from upvit_mm.registry import HOOKS

SHOWN = 16  # of many pictures


@HOOKS.register_module()
class StopOnNonFiniteLoss(Hook):
    """Stop the training of any mmengine model at the first NaN or infinite loss term, and keep the last checkpoint.

    The terms are read after the model's forward pass, so the step that would damage the weights is not taken. Weights
    are checked before a checkpoint is written, because the step before it may have damaged them.

    Note:
        In a distributed run the process that finds it ends, and the launcher ends the others. Losses that a model does
        not compute in ``forward(mode='loss')`` are found one step later. A loss scaler handles infinite gradients,
        which this hook never sees; it cannot handle an infinite loss.

    Raises:
        ValueError: a term is not finite; the message has iteration, term, value, the pictures of the batch, the last
            checkpoint and what to do.
    """

    priority = 'ABOVE_NORMAL'  # before averaging, logging and saving

    def before_train(self, runner: Runner) -> None:
        # a local function: copies of the model share it; a method would be copied with the whole runner
        def look(module: nn.Module, args, kwargs, losses) -> None:
            if kwargs.get('mode') == 'loss':
                _check_losses(runner, losses, kwargs.get('data_samples'))

        self._watch = model_of(runner).register_forward_hook(look, with_kwargs=True)

    def after_train(self, runner: Runner) -> None:
        self._watch.remove()

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        _check_losses(runner, outputs, data_batch.get('data_samples') if isinstance(data_batch, Mapping) else None)

    def after_train_epoch(self, runner: Runner) -> None:
        # not in before_save_checkpoint: by then the checkpoint hook may have removed the last good file
        _check_weights(runner, runner.iter)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        _check_weights(runner, checkpoint['meta']['iter'])


def _check_losses(runner: Runner, losses: Any, samples: Any) -> None:
    terms = {}
    for name, value in losses.items() if isinstance(losses, Mapping) else ():
        parts = [value] if isinstance(value, Tensor) else value if isinstance(value, list) else []
        if 'loss' in name and parts:  # mmengine's rule for the terms that are summed
            terms[name] = sum(part.mean() for part in parts)
    if not terms:
        return
    finite = torch.stack([torch.isfinite(term) for term in terms.values()])
    if finite.all():  # only one wait for the device, for any number of terms
        return
    values = {name: term.item() for name, term in terms.items()}
    wrong = [f'{name} = {values[name]}' for name, good in zip(terms, finite.tolist()) if not good]
    others = [f'{name} = {values[name]:.4g}' for name, good in zip(terms, finite.tolist()) if good]
    what = ', '.join(wrong) + (f' (finite: {", ".join(others)})' if others else '')
    _stop(runner, runner.iter + 1, what, _pictures(samples))


def _pictures(samples: Any) -> list[str]:
    """Files of a batch of mmdet or mmpretrain."""
    samples = samples if isinstance(samples, Sequence) else []
    return [str(path) for sample in samples if (path := getattr(sample, 'img_path', None))]


def _check_weights(runner: Runner, iteration: int) -> None:
    wrong = [name for name, weight in model_of(runner).named_parameters() if not torch.isfinite(weight).all()]
    if wrong:
        _stop(runner, iteration, f'{len(wrong)} weight tensors are not finite, first {wrong[0]}; they were not saved')


def _stop(runner: Runner, iteration: int, what: str, pictures: Sequence[str] = ()) -> None:
    last = Path(runner.work_dir, 'last_checkpoint')
    kept = f'The last checkpoint is {last.read_text(encoding="utf-8")}' if last.is_file() else 'No checkpoint yet'
    more = f' and {len(pictures) - SHOWN} more' if len(pictures) > SHOWN else ''
    batch = f' ({", ".join(pictures[:SHOWN])}{more})' if pictures else ''
    raise ValueError(
        f'training stopped at iteration {iteration} (epoch {runner.epoch + 1}): {what}. {kept}. Check the data '
        f'of this batch{batch}, lower the learning rate, set optim_wrapper.clip_grad or train without AMP, then resume.'
    )
