"""The cost of a teacher: training steps with and without it, timed alternately."""

from __future__ import annotations

from collections.abc import Mapping

from mmengine.config import Config
from mmengine.dataset import pseudo_collate

from upvit_mm.cli import default_device
from upvit_mm.models.network import preprocessing_of
from upvit_mm.stopwatch import time_in_turn

ROUNDS = 12


def step_times(cfg: Config, plain: Mapping, distilled: Mapping) -> dict[str, float]:
    """Median seconds of forward and backward pass on one batch of the training data.

    Args:
        cfg: config with data and preprocessing.
        plain: config of a classifier.
        distilled: the same with a teacher.

    Returns:
        ``plain``, ``distilled``, ``teacher`` (its forward pass alone), ``ratio`` = distilled / plain, and
        ``ratio_bound`` = (plain + teacher) / plain, the lowest possible ratio of a step with one more forward pass.
    """
    from mmpretrain.registry import DATASETS, MODELS

    device = default_device()
    loader = cfg.train_dataloader
    data = DATASETS.build(dict(loader.dataset, _scope_='mmpretrain'))
    batch = pseudo_collate([data[k % len(data)] for k in range(loader.batch_size)])
    preprocessor = preprocessing_of(cfg)
    nets = [
        MODELS.build(dict(model, data_preprocessor=dict(preprocessor), _scope_='mmpretrain')).to(device).train()
        for model in (plain, distilled)
    ]
    teacher = nets[1].teacher
    images = nets[0].data_preprocessor(batch, True)['inputs']

    def step(net) -> None:
        total, _ = net.parse_losses(net(**net.data_preprocessor(batch, True), mode='loss'))
        total.backward()
        net.zero_grad()

    work = {
        'plain': lambda: step(nets[0]),
        'distilled': lambda: step(nets[1]),
        'teacher': lambda: teacher(images, {'logits'}),
    }
    medians = {name: timing.median for name, timing in time_in_turn(work, ROUNDS).items()}
    bound = (medians['plain'] + medians['teacher']) / medians['plain']
    return medians | {'ratio': medians['distilled'] / medians['plain'], 'ratio_bound': bound}
