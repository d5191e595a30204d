"""Scores in a lower precision: who may ask for them, and what the report says of their ranks."""

from __future__ import annotations

import json
import logging

import pytest
import torch

from upvit_mm.pruning.batch import Batch
from upvit_mm.pruning.criteria import ReadTokensChange, token_deviations
from upvit_mm.pruning.methods import METHODS
from upvit_mm.pruning.token_net import TokenNet
from upvit_mm.workflow import rank_agreement
from upvit_mm.workflow.prune import PruneJob
from upvit_mm.workflow.prune_goal import source_of
from upvit_mm.workflow.prune_settings import PruneSettings


def test_ranks_of_bf16(build, image, caplog, monkeypatch):
    net = TokenNet(build('pvtv2'))
    batch = Batch(image(64, 64), [0, 1])
    settings = dict(draws=4, seed=0, amp='bf16', criterion=ReadTokensChange(token_deviations(net, [batch])))
    found = rank_agreement.rank_agreement(METHODS['fisher'], net, batch, settings)
    assert (found['amp'], found['images']) == ('bf16', 2)
    assert 0.9 < found['lowest'] < 1
    assert found['lowest'] <= found['median'] <= 1
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    monkeypatch.setattr(rank_agreement, 'LEAST', 1.0)
    assert rank_agreement.rank_agreement(METHODS['fisher'], net, batch, settings) == found
    assert 'score it without amp' in caplog.text


@pytest.mark.parametrize('family', ['pvtv2'])
def test_the_report_tells_it(cfg, shrink, checkpoint, tmp_path):
    cfg = shrink(cfg)
    from mmpretrain.registry import MODELS

    torch.save({'state_dict': MODELS.build(cfg.model).state_dict()}, checkpoint)
    goal = source_of(cfg).with_widths({'mlp_hidden_dims': 8})
    settings = PruneSettings(per_class=1, draws=1, eval_images=0, compensate=False, amp='bf16')
    for _ in range(2):  # made, and known from before
        PruneJob(cfg, checkpoint, goal, tmp_path / 'out', settings).run()
        agreement = json.loads((tmp_path / 'out/report.json').read_text())['agreement']
        assert agreement['images'] == 10
        assert rank_agreement.text_of(agreement) in (tmp_path / 'out/report.md').read_text()
        (tmp_path / 'out/pruned.pth').unlink()


def test_only_fisher_takes_it():
    assert PruneSettings(amp='bf16', method='hybrid').amp == 'bf16'
    with pytest.raises(ValueError, match=r"amp = 'bf16', method = 'exact': it is always computed in float32"):
        PruneSettings(amp='bf16', method='exact')
    with pytest.raises(ValueError, match="amp = 'fp16': must be one of bf16"):
        PruneSettings(amp='fp16')
    with pytest.raises(ValueError, match=r'memory = -1\.0: GiB'):
        PruneSettings(memory=-1.0)
