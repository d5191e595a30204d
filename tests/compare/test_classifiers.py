"""The comparison of vanilla and pruned networks: complete, reused, resumed, and the same in all its files."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from mmengine.runner import EpochBasedTrainLoop

from upvit_mm.arch import ArchSpec
from upvit_mm.compare import step_times
from upvit_mm.compare.classifier_options import VANILLA, WAYS, ClassifierOptions
from upvit_mm.compare.classifier_report import as_markdown
from upvit_mm.compare.classifier_table import ClassifierTable
from upvit_mm.compare.classifiers import Comparison, balanced_subset, rows_of
from upvit_mm.pruning.budget import Budget
from upvit_mm.pruning.costs import count_macs
from upvit_mm.workflow import trainings
from upvit_mm.workflow.finetune import HOOKS
from upvit_mm.workflow.lesson import Lesson
from upvit_mm.workflow.prune_settings import PruneSettings

SHORT = [row for row in WAYS if not row.both_trainings]
NARROWER = {
    'deit': dict(embed_dims=[16], mlp_hidden_dims=24),
    'pvtv2': dict(embed_dims=[8, 16, 16, 16], qk_dims=[4, 8, 10, 12]),
}
SETTINGS = PruneSettings(method='magnitude', per_class=2, compensate=True, eval_images=20)


@pytest.fixture
def cfg(cfg, shrink):
    return shrink(cfg)


@pytest.fixture
def compare(cfg, checkpoint, family, monkeypatch, tmp_path):
    """``compare(checkpoint=..., **options)``: what a comparison gives, and what it said."""
    monkeypatch.setattr(step_times, 'ROUNDS', 5)
    goal = ArchSpec.from_dict(cfg.arch).with_widths({'name': 'narrow', **NARROWER[family]})

    def run(checkpoint=checkpoint, **options):
        said = []
        options = ClassifierOptions(**dict(epochs=2, seeds=[0], train_images=40) | options)
        job = Comparison(cfg, checkpoint, goal, SETTINGS, options, tmp_path / 'out', said.append)
        return job.run(command='the command'), said

    return run


def test_a_whole_comparison_and_its_files(compare, tmp_path):
    content, said = compare(lesson=Lesson(feature=1.0))
    out = tmp_path / 'out'
    assert content == json.loads((out / 'compare.json').read_text())
    assert [row['key'] for row in content['rows']] == [row.key for row in SHORT]
    assert all(len(row['curve']) == 2 and row['curves'] == [row['curve']] for row in content['rows'])
    assert all(row['mean'] == row['curve'][-1] == row['top1']['0'] for row in content['rows'])
    assert said[0].startswith('5 trainings, 0 of them')
    start, first, second, end = said[1:5]
    assert start == f'vanilla, from scratch, seed 0: 2 epochs in {out / "vanilla/seed0"}'
    assert [first, second] == [
        f'  epoch {k + 1}/2: top-1 {top1:.2f} %' for k, top1 in enumerate(content['rows'][0]['curve'])
    ]
    assert end.startswith('1/5 vanilla, from scratch, seed 0: top-1')
    assert len(said) == 1 + 5 * 4

    lines = (out / 'compare.md').read_text().splitlines()
    table = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines if line.startswith('| ')]
    assert [cells[0] for cells in table[1:]] == ['dense', *(row.title for row in SHORT)]
    assert table[1][3] == f'{content["dense"]["top1"]:.2f}'
    for row, cells in zip(content['rows'], table[2:]):
        over = '' if row['key'] == 'vanilla' else f'{row["over_vanilla"]:+.2f} (one seed)'
        assert cells[3:5] == [f'{row["mean"]:.2f}', over]
    assert {row['interval'] for row in content['rows']} == {None}
    assert 'the command' in lines
    assert f'MACs at {"x".join(map(str, content["size"]))} and parameters include the head.' in lines
    (caption,) = [line for line in lines if line.startswith('One seed: there is no interval')]
    assert 'All seeds share one dense network and one pruning of it' in caption
    sheet = list(csv.DictReader((out / 'compare.csv').read_text().splitlines()))
    assert [float(line['mean']) for line in sheet[1:]] == [row['mean'] for row in content['rows']]
    assert (out / 'curves.png').read_bytes().startswith(b'\x89PNG')

    again, said = compare(lesson=Lesson(feature=1.0))
    assert again == content
    assert said == ['5 trainings, 5 of them finished before with the same inputs']
    _, said = compare(lesson=Lesson(feature=2.0), rows=['vanilla', 'compensated-distilled'])
    assert said[0].startswith('2 trainings, 1 of them')  # the one without a teacher


@pytest.mark.parametrize('family', ['pvtv2'])
def test_what_is_trained(compare, cfg, monkeypatch, tmp_path):
    """The same data for all, the usual scale of logits for the vanilla network, and each row's own start and rate."""

    def pretend(folder, say):
        (folder / 'epoch_1.pth').touch()
        (folder / 'record.json').write_text('{"top1": [50.0], "seconds_per_step": 1.0}')

    monkeypatch.setattr(trainings, 'run_training', pretend)
    cfg.train_dataloader.update(num_workers=1, persistent_workers=True)
    cfg.custom_hooks = [dict(type='EMAHook'), dict(type=HOOKS[0])]
    content, _ = compare(epochs=1, lr=0.01, finetune_lr=0.003)
    runs = {row.key: trainings.Config.fromfile(tmp_path / f'out/{row.key}/seed0/config.py') for row in SHORT}
    plan = json.loads((tmp_path / 'out/pruning/plan.json').read_text())
    assert {str(run.train_dataloader) for run in runs.values()} == {str(runs['vanilla'].train_dataloader)}
    assert len(runs['vanilla'].train_dataloader.dataset.indices) == 40
    for row in SHORT:
        run = runs[row.key]
        arch = ArchSpec.from_dict(run.model.backbone.arch)
        assert run.optim_wrapper.optimizer.lr == (0.003 if row.start else 0.01)
        assert [hook.type for hook in run.custom_hooks] == ['EMAHook', *HOOKS]
        assert not run.train_dataloader.persistent_workers
        assert ('teacher' in run.model) == row.distilled
        assert arch.embed_dims == (8, 16, 16, 16)
        assert ArchSpec.from_json(tmp_path / f'out/{row.key}/arch.json') == arch  # what its checkpoints belong to
        if row.start:
            assert run.model.init_cfg.checkpoint == str(tmp_path / 'out/pruning' / row.start)
            assert arch.to_dict() == plan['target_arch']
        else:
            assert arch.qk_scales[0][0] == 4**-0.5
    assert content['options']['finetune_lr'] == 0.003


@pytest.mark.parametrize('family', ['pvtv2'])
def test_a_run_that_was_cut_off_goes_on(compare, monkeypatch, tmp_path):
    whole = EpochBasedTrainLoop.run_epoch

    def stop(self):
        if self.epoch == 1:
            raise KeyboardInterrupt
        whole(self)

    rows = dict(rows=['vanilla'], epochs=3)
    monkeypatch.setattr(EpochBasedTrainLoop, 'run_epoch', stop)
    with pytest.raises(KeyboardInterrupt):
        compare(**rows)
    folder = tmp_path / 'out/vanilla/seed0'
    first = json.loads((folder / 'record.json').read_text())['top1']
    assert len(first) == 1
    (folder / 'record.json').unlink()  # as if it had been cut off between saving and judging
    epochs = []
    monkeypatch.setattr(EpochBasedTrainLoop, 'run_epoch', lambda self: (epochs.append(self.epoch), whole(self)))
    content, _ = compare(**rows)
    assert epochs == [1, 2]
    assert content['rows'][0]['curve'][0] == first[0]
    assert None not in content['rows'][0]['curve']


@pytest.mark.parametrize('family', ['deit'])
def test_the_dense_network_is_trained_where_none_is_given(compare, tmp_path):
    rows = ['vanilla', 'compensated', 'vanilla-long']
    content, said = compare(checkpoint=None, rows=rows, epochs=1, dense_epochs=2)
    assert content['checkpoint'] == str(tmp_path / 'out/dense/epoch_2.pth')
    assert said[4].startswith('1/1 dense: top-1')
    record = json.loads((tmp_path / 'out/dense/record.json').read_text())
    assert content['dense']['top1'] == record['top1'][-1]
    assert [row['epochs'] for row in content['rows']] == [len(row['curve']) for row in content['rows']] == [1, 1, 3]
    assert content['options']['dense_epochs'] == 2


@pytest.mark.parametrize('family', ['pvtv2'])
def test_two_at_a_time_give_the_same(compare, cfg, tmp_path):
    rows = ['vanilla', 'compensated-distilled']
    one, _ = compare(rows=rows, epochs=1)
    for row in rows:  # the pruning stays
        shutil.rmtree(tmp_path / 'out' / row)
    two, said = compare(rows=rows, epochs=1, jobs=2)
    assert said[0].startswith('2 trainings, 0 of them')
    assert [row['curves'] for row in one['rows']] == [row['curves'] for row in two['rows']]


def test_summary():
    def record(*top1):
        return {'top1': list(top1), 'seconds_per_step': 0.5}

    rows = [VANILLA, WAYS[3]]
    records = {
        'vanilla': {0: record(10.0, 50.0, 80.0), 1: record(20.0, 60.0, 84.0)},
        'compensated-distilled': {0: record(70.0, None, 90.0), 1: record(88.0, 86.0, 94.0)},
    }
    vanilla, ours = rows_of(rows, records)
    assert (vanilla['mean'], vanilla['over_vanilla'], vanilla['epochs_to_vanilla']) == (82.0, 0.0, 3)
    assert vanilla['std'] == pytest.approx(np.std([80, 84], ddof=1))
    assert ours['curve'] == [79.0, 86.0, 92.0]
    assert (ours['over_vanilla'], ours['epochs_to_vanilla']) == (10.0, 2)
    assert ours['interval'] == [10.0, 10.0]  # with both seeds, so the spread of the rows themselves does not matter
    assert ours['established'] is True
    (alone,) = rows_of([WAYS[3]], records)
    assert (alone['over_vanilla'], alone['interval'], alone['established']) == (None, None, None)


@pytest.mark.parametrize(
    ('top1', 'cell', 'ends'),
    [
        ((80.0, 84.0, 82.0), '', (0, 0, False)),
        ((80.3, 84.8, 83.3), '+0.80 [-0.44, +2.04]', (-0.442, 2.042, False)),
        ((83.8, 89.4, 89.0), '**+5.40 [+1.43, +9.37]**', (1.425, 9.375, True)),
        ((79.1, 83.0, 80.9), '**-1.00 [-1.25, -0.75]**', (-1.248, -0.752, True)),
    ],
)
def test_a_gain_is_bold_only_with_its_interval(top1, cell, ends):
    """Three seeds; the vanilla row has 80, 84, 82."""
    row = VANILLA if cell == '' else WAYS[3]
    records = {
        key: {seed: {'top1': [50.0, value], 'seconds_per_step': 0.5} for seed, value in enumerate(values)}
        for key, values in {'vanilla': (80.0, 84.0, 82.0), row.key: top1}.items()
    }
    rows = rows_of([VANILLA] if row == VANILLA else [VANILLA, row], records)
    lesson = {'soft': 1.0}
    options = {'train_images': 40, 'seeds': [0, 1, 2], 'lesson': lesson, 'dense_epochs': 2, 'finetune_lr': 1, 'lr': 1}
    costs = {'macs': 1, 'params': 1}
    content = {'goal': 'goal', 'options': options, 'rows': rows, 'dense': {'top1': 90.0, **costs}, 'target': costs}
    content |= {'one_shot': {}, 'checkpoint': 'dense.pth', 'sha256': 'd' * 64}
    content['step_times'] = dict.fromkeys(('ratio', 'distilled', 'plain', 'teacher', 'ratio_bound'), 1.0)
    table = ClassifierTable.of(content)
    text = as_markdown(table)
    (line,) = [line for line in text.splitlines() if line.startswith(f'| {row.title} |')]
    assert line.split(' | ')[4] == cell
    assert text.count('**') == (2 if '*' in cell else 0)
    assert 'All seeds share one dense network and one pruning of it' in text
    sheet = list(csv.DictReader(table.sheet().csv().splitlines()))[-1]
    found = [float(sheet[f'over_vanilla_{end}']) for end in ('low', 'high')]
    assert (found, sheet['established']) == (pytest.approx(ends[:2], abs=1e-3), str(ends[2]))


@pytest.mark.parametrize('family', ['pvtv2'])
def test_mistakes(compare, cfg, checkpoint, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"checkpoint '.*no.pth' does not exist"):
        compare(checkpoint='no.pth')
    with pytest.raises(ValueError, match='train_images = 45: must be a multiple of the 10 classes'):
        compare(train_images=45)
    with pytest.raises(ValueError, match='class 0 has 400 training images: 401 of every class'):
        compare(train_images=4010)
    for options, match in (
        (dict(epochs=0), 'epochs = 0: must be above 0'),
        (dict(seeds=[1, 1]), r'seeds = \[1, 1\]: one or more, each once'),
        (dict(rows=['best']), "'best' is unknown; known: vanilla"),
        (dict(rows=['vanilla-long']), 'rows: vanilla-long needs dense_epochs'),
    ):
        with pytest.raises(ValueError, match=match):
            compare(**options)
    with pytest.raises(ValueError, match='one must be above 0'):
        Lesson(soft=0.0)
    (tmp_path / 'thesis.txt').touch()
    with pytest.raises(ValueError, match='holds something other than a training'):
        trainings.Training('training', tmp_path, cfg).prepare()
    cfg.model.type = 'upvit_mm.DistillClassifier'
    with pytest.raises(ValueError, match="must be 'ImageClassifier', the dense network's config"):
        compare()


@pytest.mark.parametrize('family', ['pvtv2'])
def test_goals_out_of_reach_are_refused_before_the_dense_network_is_trained(cfg, tmp_path, monkeypatch):
    wider = ArchSpec.from_dict(cfg.arch).with_widths({'mlp_hidden_dims': 4096})
    job = (SETTINGS, ClassifierOptions(epochs=1), tmp_path)
    with pytest.raises(ValueError, match='mlp_hidden: the target keeps 4096 of'):
        Comparison(cfg, None, wider, *job)
    with pytest.raises(ValueError, match='out of reach: the narrowest network costs'):
        Comparison(cfg, None, Budget.parse('params=1%'), *job)
    half = Budget.parse('params=50%')
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    with pytest.raises(ValueError, match=r"device = 'cuda': torch .* sees no GPU"):
        Comparison(cfg, None, half, replace(SETTINGS, device='cuda'), *job[1:])
    with pytest.raises(ValueError, match='compensate = False: the rows need the plain and the compensated slice'):
        Comparison(cfg, None, half, replace(SETTINGS, compensate=False), *job[1:])
    cfg.model.neck = None
    with pytest.raises(ValueError, match=r'model\.neck = None: the head of a PVTv2 must read the mean'):
        Comparison(cfg, None, half, *job)


@pytest.mark.parametrize('family', ['pvtv2'])
@pytest.mark.parametrize(
    ('goal', 'size'), [('macs=80%@32x64', (32, 64)), ('macs=80%', (64, 64)), ('params=80%', (64, 64))]
)
def test_costs_are_counted_at_the_size_of_the_budget(cfg, checkpoint, goal, size, tmp_path, monkeypatch):
    """Not at the architecture's own, which most pictures of a small data set do not have."""
    monkeypatch.setattr(Comparison, '_dense_row', lambda self: self._costs(self.source))
    job = Comparison(cfg, checkpoint, Budget.parse(goal), SETTINGS, ClassifierOptions(epochs=1), tmp_path)
    source = ArchSpec.from_dict(cfg.arch)
    assert source.img_size == 64
    assert job._size == size
    assert job._dense_row()['macs'] == count_macs(source, size, cfg.model.head.num_classes)


@pytest.mark.parametrize('family', ['pvtv2'])
def test_a_loss_that_is_no_number_names_the_training(compare):
    with pytest.raises(ValueError, match=r'^vanilla, from scratch, seed 0: training stopped at iteration \d+ .*nan'):
        compare(rows=['vanilla'], lr=1e30)


@pytest.mark.parametrize('family', ['pvtv2'])
def test_the_subset_is_balanced_and_seeded(cfg):
    from mmpretrain.registry import DATASETS

    chosen = [balanced_subset(cfg, 30, seed).train_dataloader.dataset.indices for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    dataset = DATASETS.build(dict(balanced_subset(cfg, 30, 0).train_dataloader.dataset, _scope_='mmpretrain'))
    assert torch.bincount(torch.tensor(dataset.get_gt_labels())).tolist() == [3] * 10
    with pytest.raises(ValueError, match='no subset can be taken of CustomDataset'):
        balanced_subset(balanced_subset(cfg, 30, 0), 10, 0)


def test_the_time_of_a_step_may_be_lost():
    """A run that was killed between its last step and its only judgement resumes without a step."""
    records = {'vanilla': {seed: {'top1': [50.0], 'seconds_per_step': s} for seed, s in enumerate((None, 2.0, 4.0))}}
    assert rows_of([VANILLA], records)[0]['seconds_per_step'] == 3.0
    records['vanilla'] = {0: records['vanilla'][0]}
    assert rows_of([VANILLA], records)[0]['seconds_per_step'] is None
