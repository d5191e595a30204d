"""One line for an optimizer, in place of one for every option of every parameter."""

from __future__ import annotations

import logging

from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper, OptimWrapperDict, build_optim_wrapper
from torch import nn, optim

from upvit_mm.optim import summary, without_options
from upvit_mm.runner import build_runner


def test_rates_and_decay():
    model = nn.Linear(10, 3)
    groups = [
        {'params': [model.weight], 'lr': 0.1, 'weight_decay': 0.05},
        {'params': [model.bias], 'lr': 0.01, 'weight_decay': 0.0},
    ]
    one = OptimWrapper(optim.AdamW(groups))
    assert summary(one) == 'AdamW: 30 at lr 0.1, 3 at lr 0.01; weight decay acts on 30 of 33 parameters'
    other = OptimWrapper(optim.SGD(model.parameters(), lr=1.0))
    text = summary(OptimWrapperDict(a=one, b=other))
    assert text.endswith('parameters; SGD: 33 at lr 1; weight decay acts on 0 of 33 parameters')


def test_single_parameters_are_not_listed():
    logger, said = MMLogger.get_instance('quiet'), []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger.addHandler(handler)
    model, cfg = nn.Linear(10, 3), dict(optimizer=dict(type='SGD', lr=1.0), paramwise_cfg=dict(bias_lr_mult=2.0))
    build_optim_wrapper(model, cfg)
    assert any(text.startswith('paramwise_options -- ') for text in said)
    said.clear()
    with without_options(logger):
        build_optim_wrapper(model, cfg)
        logger.info('something else')
    assert not any('paramwise' in text for text in said)
    assert said[-1] == 'something else'
    assert not logger.filters


def test_a_training_says_it_once(detector_config, tmp_path):
    cfg = detector_config('pvtv2')
    cfg.work_dir = str(tmp_path)
    build_runner(cfg, ('train',))
    (log,) = tmp_path.rglob('*.log')
    text = log.read_text()
    assert 'paramwise_options' not in text
    assert text.count('weight decay acts on ') == 1
