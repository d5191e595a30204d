"""What OpenMMLab says twice is left out of a log."""

from __future__ import annotations

import logging
from types import SimpleNamespace

from upvit_mm.quiet_log import leave_out_prints, leave_out_repeated


def test_one_line_for_each_fact(caplog):
    logger = logging.getLogger('upvit_mm.test_quiet_log')
    caplog.set_level('INFO', logger.name)
    leave_out_repeated(logger)
    leave_out_repeated(logger)
    assert len(logger.filters) == 1
    logger.info('bbox_mAP_copypaste: %.3f', 0.186)
    logger.info('Exp name: %s', 'run')
    logger.warning('"FileClient" will be deprecated in future.')
    logger.info('Epoch(val) [6][13/13]    coco/bbox_mAP: 0.1860')
    logger.warning('the loss is high')
    assert caplog.messages == ['Epoch(val) [6][13/13]    coco/bbox_mAP: 0.1860', 'the loss is high']


def test_what_metrics_print(capsys):
    evaluator = SimpleNamespace(evaluate=lambda size, more=0: print('DONE (t=0.17s).') or size + more)
    leave_out_prints(evaluator)
    assert evaluator.evaluate(3, more=1) == 4
    print('after')
    assert capsys.readouterr().out == 'after\n'
