"""The benchmark of repairs measures what it says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from upvit_mm.benchmark.repair_rivals import state_of
from upvit_mm.benchmark.repairs import (
    OURS,
    ROWS,
    Reference,
    benchmark_repairs,
    ours,
    tables_of,
    writers_repaired,
)
from upvit_mm.choices import REPAIRED
from upvit_mm.consistency.cka import LinearCKA
from upvit_mm.pruning import make_plan, prunable_dims, slice_state
from upvit_mm.pruning.batch import Batch
from upvit_mm.pruning.budget import Budget
from upvit_mm.pruning.posterior import PosteriorNet

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cfg(cfg, shrink):
    return shrink(cfg)


@pytest.fixture
def nets(family, stock_arch, build, randomise) -> list[PosteriorNet]:
    """Two of one architecture."""
    backbones = [build(family, stock_arch(family), seed=seed, out_indices=(-1,)) for seed in (0, 1)]
    return [PosteriorNet(net, randomise(nn.Linear(net.arch.embed_dims[-1], 4), seed=7)) for net in backbones]


@pytest.fixture
def batches(image):
    labels = torch.tensor([0, 1, 2, 3])
    return [Batch(image(64, 64, batch=4, channels=3) + shift, range(4), labels) for shift in (0, 0.5, 1)]


def test_the_first_compensation_changed_writers_only(nets, batches):
    dense = nets[0]
    dims = prunable_dims(dense.backbone.arch)
    plan = make_plan(dense.backbone.arch, {n: range(d.size // 2) for n, d in dims.items() if d.kind == 'mlp_hidden'})
    plain, found = slice_state(state_of(dense), plan), writers_repaired(dense, plan, batches, 0.01)
    changed = {key.rsplit('.', 1)[0] for key, value in found.items() if not torch.equal(value, plain[key])}
    assert {key.split('.', 5)[-1] for key in changed} <= {'attn.proj', 'mlp.fc2', 'fc'} | {'head.fc'}
    assert any(key.endswith('mlp.fc2') for key in changed)
    everywhere = ours(dense, plan, batches, 0.01)
    assert any(key.endswith('mlp.fc1.weight') and not torch.equal(everywhere[key], plain[key]) for key in plain)


def test_a_reference_judges(nets, batches, family):
    dense, other = nets
    reference = Reference(dense, batches)
    same = reference.judge(dense)
    assert same['kl'] == pytest.approx(0, abs=1e-9)
    assert same['cka'] == same['cka_twice'] == pytest.approx(1)
    figures = reference.judge(other)
    with torch.no_grad():
        p, q = (torch.cat([net(batch.images) for batch in batches]).double().log_softmax(1) for net in nets)
        assert figures['kl'] == pytest.approx((p.exp() * (p - q)).sum(1).mean().item())
        labels = torch.cat([batch.labels for batch in batches])
        assert figures['top1'] == pytest.approx(100 * (q.argmax(1) == labels).double().mean().item())
        cka = LinearCKA()
        for batch in batches[:2]:
            larger = nn.functional.interpolate(batch.images, (128, 128), mode='bicubic', antialias=True)
            cka.update(*(net.backbone(larger)[-1].flatten(2).transpose(1, 2) for net in nets))
    assert figures['cka_twice'] == pytest.approx(cka.compute()['cka'], abs=1e-4)
    assert figures['cka_twice'] != figures['cka']


def test_tables_show_medians_and_paired_ratios():
    def figures(*kls):
        return [dict(kl=kl, top1=50 + kl, cka=0.9, cka_twice=0.8) for kl in kls]

    rows = {OURS: figures(0.5, 1.0, 0.4), 'other': figures(1.0, 1.5, 1.6)}
    results = {'settings': {'budget': 'macs=50%', 'seeds': [0, 1, 2]}, 'dense': {'top1': 90.0}, 'rows': {'half': rows}}
    ((title, table),) = tables_of(results)
    assert title == 'half (macs=50%, dense top-1 90.0, median of 3 seeds)'
    assert table.rows == [
        [OURS, '0.5000', '1.00x', '50.5', '0.900', '0.800'],
        ['other', '1.5000', '2.00x', '51.5', '0.900', '0.800'],
    ]


def test_the_tool_runs_on_digits(family, cfg, checkpoint, run, tmp_path):
    cfg.dump(tmp_path / 'dense.py')
    command = [sys.executable, ROOT / 'tools/benchmark.py', 'repair', 'dense.py', checkpoint, '--save', 'repair.json']
    command += ['--per-class', '2', '--eval-images', '40', '--round-to', '4', '--threads', '1']
    output = run(list(map(str, command)))
    results = json.loads((tmp_path / 'repair.json').read_text())
    assert list(results['rows']) == list(results['widths']) == list(REPAIRED.values())
    for widths, rows in results['rows'].items():
        assert f'{widths} (macs=50%' in output
        assert list(rows) == list(ROWS)
        assert all(figures['kl'] > 0 and 0 < figures['cka'] <= 1 for (figures,) in rows.values())
    assert results['widths'][REPAIRED['half']][0]['embed_dims'] == cfg.arch['embed_dims']
    assert results['settings']['seeds'] == [0]
    assert {'machine', 'torch', 'upvit_mm'} <= set(results['settings'])
    assert 'repair dense.py' in results['command']


def test_what_cannot_be_compared_is_refused(family, cfg, checkpoint, tmp_path):
    with pytest.raises(ValueError, match=r'ridge = 0.0: must be above 0'):
        benchmark_repairs(cfg, checkpoint, Budget.parse('macs=50%'), ridge=0.0)
    state = torch.load(checkpoint, weights_only=True)['state_dict']
    torch.save({k: v for k, v in state.items() if not k.startswith('head.')}, tmp_path / 'backbone.pth')
    with pytest.raises(ValueError, match='has no linear head: class posteriors are compared'):
        benchmark_repairs(cfg, str(tmp_path / 'backbone.pth'), Budget.parse('macs=50%'))
