"""The comparison of backbones in a detector: paired, reused, resumed, and the same in all its files."""

from __future__ import annotations

import csv
import json
import math
import statistics
from pathlib import Path

import pytest
import torch
from mmengine.runner import EpochBasedTrainLoop
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from upvit_mm.compare import evaluation
from upvit_mm.compare.cells import Difference
from upvit_mm.compare.contestants import Contestant, check_detector_config, training_of, with_backbone
from upvit_mm.compare.detector_options import DetectorOptions
from upvit_mm.compare.detector_report import as_markdown
from upvit_mm.compare.detector_table import DetectorTable
from upvit_mm.compare.detectors import DetectorComparison, with_statistics
from upvit_mm.compare.paired import AP_STEP, paired_difference
from upvit_mm.files import sha256_of
from upvit_mm.pruning.costs import count_macs, count_params
from upvit_mm.workflow.ledger import Ledger
from upvit_mm.workflow.whole_detector import build_detector

AP_NAMES = [f'bbox_mAP{end}' for end in ('', '_50', '_75', '_s', '_m', '_l')]


@pytest.fixture
def compare(tmp_path):
    """``compare(cfg, *backbones, out=..., **options)``: what a comparison gives, and what it said."""

    def run(cfg, *backbones, out='out', **options):
        said = []
        options = DetectorOptions(**dict(seeds=(0,), repeats=0) | options)
        contestants = [Contestant.parse(text) for text in backbones]
        job = DetectorComparison(cfg, contestants, options, tmp_path / out, said.append)
        return job.run(command='the command'), said

    return run


def test_a_whole_comparison_and_its_files(compare, detector_config, archs, save_backbone, tmp_path):
    _, narrow = archs('pvtv2')
    start = save_backbone('pvtv2', narrow)
    words = [f'up={narrow},{start}', f'vanilla={narrow}']
    settings = dict(seeds=(3, 1), baseline='vanilla', repeats=2, batch=2)
    content, said = compare(detector_config('pvtv2'), *words, **settings)
    out = tmp_path / 'out'
    assert content == json.loads((out / 'detectors.json').read_text())
    assert said[0] == '4 trainings, 0 of them finished before with the same inputs'
    assert (out / 'curves.png').read_bytes().startswith(b'\x89PNG')

    given = {
        name: [json.loads((out / name / f'seed{s}/metrics.json').read_text())['metrics'] for s in (3, 1)]
        for name in ('up', 'vanilla')
    }
    sheet = {line['name']: line for line in csv.DictReader((out / 'detectors.csv').read_text().splitlines())}
    lines = (out / 'detectors.md').read_text().splitlines()
    table = {line.split('|')[1].strip(): line for line in reversed(lines) if line.startswith('| ')}
    for row in content['rows']:
        for name in ('bbox_mAP', 'bbox_mAP_50', 'bbox_mAP_s'):
            mine, theirs = ([m[f'coco/{name}'] for m in given[key]] for key in (row['name'], 'vanilla'))
            differences = [a - b for a, b in zip(mine, theirs)]
            assert row['mean'][name] == pytest.approx(statistics.mean(mine))
            assert row['std'][name] == pytest.approx(statistics.stdev(mine))
            assert row['over_baseline'][name]['mean'] == pytest.approx(statistics.mean(differences))
            assert row['over_baseline'][name]['std'] == pytest.approx(statistics.stdev(differences))
            assert row['over_baseline'][name] == paired_difference(mine, theirs, AP_STEP if row['name'] == 'up' else 0)
            ends = row['over_baseline'][name]['interval']
            assert [float(sheet[row['name']][f'{name}_over_baseline_{end}']) for end in ('low', 'high')] == ends
            assert float(sheet[row['name']][name]) == row['mean'][name]
        spread = f'{100 * row["mean"]["bbox_mAP"]:.1f} ± {100 * row["std"]["bbox_mAP"]:.1f}'
        over = row['over_baseline']['bbox_mAP']
        cells = [cell.strip() for cell in table[row['name']].split('|')]
        assert cells[2:4] == [spread, '' if row['name'] == 'vanilla' else Difference.of(over, 1, 100).markdown()]
        for run in row['runs']:
            assert run['curve'] == [run['metrics']['bbox_mAP']]  # judged on the same images after the only epoch
            assert (out / run['predictions']).is_file()
            assert run['checkpoint_sha256'] == sha256_of(run['checkpoint'])
        assert content['speed']['detectors'][row['name']]['latency']['runs'] == 2
    assert [line for line in lines if line.startswith('Every seed is a training of the detector. up: all seeds start')]
    assert 'Bold: the interval is wholly above or below 0.' in '\n'.join(lines)
    arch = Contestant.parse(words[0]).arch
    assert content['rows'][0]['macs'] == count_macs(arch, (64, 64))
    assert content['rows'][0]['detector_macs'] > content['rows'][0]['macs']
    assert [Path(file).name for part in content['data'].values() for file in part] == [
        'instances_train.json',
        'instances_val.json',
    ]
    assert content['pictures'] == {'train': 8, 'test': 2}
    assert lines[2].startswith('1 epoch, seeds 3, 1 on 8 pictures (')
    assert '; AP on 2 test pictures (' in lines[2]
    assert content['rows'][0]['backbone_params'] == count_params(arch)
    assert content['rows'][0]['sha256'] == sha256_of(start)

    again, said = compare(detector_config('pvtv2'), *words, **settings)
    assert again == content
    assert said == ['4 trainings, 4 of them finished before with the same inputs']

    save_backbone('pvtv2', narrow, seed=1)
    changed, said = compare(detector_config('pvtv2'), *words, **settings | dict(repeats=0))
    assert said[0] == '4 trainings, 2 of them finished before with the same inputs'
    assert said[-2:] == ['evaluating up, seed 3', 'evaluating up, seed 1']
    assert [line for line in said if line.startswith('  epoch')] == 2 * ['  epoch 1/1: box AP 0.000']
    assert [a['runs'] == b['runs'] for a, b in zip(content['rows'], changed['rows'])] == [False, True]


def test_a_run_that_was_cut_off_ends_like_an_undisturbed_one(
    compare, detector_config, archs, identical, monkeypatch, tmp_path
):
    wide, _ = archs('deit')
    cfg = detector_config('deit')
    cfg.train_cfg.val_interval = 2
    whole = EpochBasedTrainLoop.run_epoch

    def stop(self):
        if self.epoch == 2:
            raise KeyboardInterrupt
        whole(self)

    undisturbed, _ = compare(cfg, f'dense={wide}', out='undisturbed', epochs=3)
    with monkeypatch.context() as patch:
        patch.setattr(EpochBasedTrainLoop, 'run_epoch', stop)
        with pytest.raises(KeyboardInterrupt):
            compare(cfg, f'dense={wide}', epochs=3)
    epochs = []
    monkeypatch.setattr(EpochBasedTrainLoop, 'run_epoch', lambda self: (epochs.append(self.epoch), whole(self)))
    resumed, _ = compare(cfg, f'dense={wide}', epochs=3)
    assert epochs == [2]
    states = [
        torch.load(tmp_path / folder / 'dense/seed0/epoch_3.pth', weights_only=False)['state_dict']
        for folder in ('undisturbed', 'out')
    ]
    assert identical(*states)
    curves = [content['rows'][0]['runs'][0]['curve'] for content in (undisturbed, resumed)]
    assert curves[0] == curves[1]
    assert [ap is None for ap in curves[0]] == [True, False, False]  # judged after epochs 2 and 3


def test_evaluation_alone_with_masks(compare, detector_config, archs, monkeypatch, tmp_path):
    wide, narrow = archs('pvtv2')
    cfg = detector_config('pvtv2', 'mask-rcnn')
    words = []
    for name, arch in (('dense', wide), ('up', narrow)):
        contestant = Contestant.parse(f'{name}={arch}')
        torch.manual_seed(0)
        detector = build_detector(with_backbone(cfg, contestant))
        detector.init_weights()
        torch.save({'state_dict': detector.state_dict()}, tmp_path / f'{name}.pth')
        words.append(f'{name}={arch},{tmp_path / name}.pth')
    content, said = compare(cfg, *words, seeds=())
    assert said == ['evaluating dense', 'evaluating up']
    assert not list((tmp_path / 'out').rglob('epoch_*.pth'))
    for row in content['rows']:
        (run,) = row['runs']
        metrics = json.loads((tmp_path / 'out' / row['name'] / 'metrics.json').read_text())
        assert metrics['sha256'] == row['sha256'] == sha256_of(tmp_path / f'{row["name"]}.pth')
        assert run['predictions'] == f'{row["name"]}/predictions.json'
        assert run['seed'] is None
        assert row['mean']['segm_mAP_50'] == metrics['metrics'].get('coco/segm_mAP_50', 0.0)
        assert row['std']['segm_mAP'] is None
    assert '| mask AP |' in (tmp_path / 'out/detectors.md').read_text()
    again, said = compare(cfg, *words, seeds=())
    assert (again, said) == (content, [])
    coco = COCO(cfg.test_evaluator.ann_file)
    found = coco.loadRes(str(tmp_path / 'out/dense/predictions.json'))
    assert len(found.anns) > 0
    for kind in ('bbox', 'segm'):  # the file is what was judged
        judge = COCOeval(coco, found, kind)
        for step in (judge.evaluate, judge.accumulate, judge.summarize):
            step()
        ap50 = content['rows'][0]['mean'][f'{kind}_mAP_50']
        assert judge.stats[1] == pytest.approx(ap50, abs=6e-4)

    # a folder of a version that pickled its predictions
    folder = tmp_path / 'out/dense'
    (folder / 'predictions.json').rename(folder / 'predictions.pkl')
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, 'PREDICTIONS', 'predictions.pkl')
        job = DetectorComparison(cfg, [Contestant.parse(words[0])], DetectorOptions(()), tmp_path / 'out')
        (done,) = job._evaluations({}).values()
        Ledger(folder).record('evaluation', done._inputs(), 'metrics.json', 'predictions.pkl')
        assert done.is_done()
    again, said = compare(cfg, *words, seeds=())
    assert (again, said) == (content, ['evaluating dense'])

    with pytest.raises(ValueError, match=r'backbones: up .*: checkpoint does not fit the detector'):
        compare(cfg, words[0], f'up={narrow},{tmp_path}/dense.pth', seeds=())
    with pytest.raises(ValueError, match=r'backbones: up .*: evaluation alone needs the file of a whole'):
        compare(cfg, f'up={narrow}', seeds=())


def test_rows_differ_in_their_backbone_alone(family, detector_config, archs, save_backbone):
    wide, narrow = archs(family)
    cfg = detector_config(family)
    words = [f'a={wide},{save_backbone(family, wide)}', f'b={narrow}']
    contestants = [Contestant.parse(text) for text in words]
    one, two = (training_of(with_backbone(cfg, c), 7, None, 1) for c in contestants)
    assert one.model.backbone.init_cfg == dict(type='Pretrained', checkpoint=contestants[0].checkpoint)
    assert 'init_cfg' not in two.model.backbone
    for run, contestant in zip((one, two), contestants):
        assert type(run.model.backbone.arch.to_dict()) is dict
        assert run.model.backbone.arch == run.arch == contestant.arch.to_dict()
        assert run.model.neck.in_channels == list(contestant.arch.embed_dims)
        assert run.randomness.seed == 7
        for place, key in ((run, 'arch'), (run.model.backbone, 'arch'), (run.model.neck, 'in_channels')):
            place.pop(key)
        run.model.backbone.pop('init_cfg', None)
    assert one.to_dict() == two.to_dict()


def test_schedules_follow_the_epochs(detector_config, archs):
    cfg = with_backbone(detector_config('pvtv2'), Contestant.parse(f'a={archs("pvtv2")[0]}'))
    cfg.train_cfg.max_epochs = 12
    cfg.param_scheduler = [
        dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
        dict(type='MultiStepLR', by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1),
        dict(type='CosineAnnealingLR', by_epoch=True, T_max=12),
    ]
    warm_up, steps, cosine = training_of(cfg, 0, 36, 1).param_scheduler
    assert (warm_up.begin, warm_up.end) == (0, 500)
    assert (steps.begin, steps.end, steps.milestones) == (0, 36, [24, 33])
    assert cosine.T_max == 36
    assert training_of(cfg, 0, None, 1).param_scheduler == cfg.param_scheduler
    assert training_of(cfg, 0, 12, 8).processes == 8


def test_summary():
    def row(name, *aps):
        runs = [{'seed': s, 'metrics': {'bbox_mAP': ap, 'bbox_mAP_l': None}} for s, ap in enumerate(aps)]
        return {'name': name, 'runs': runs}

    ours, vanilla = with_statistics([row('up', 0.30, 0.34), row('vanilla', 0.20, 0.30)], 'vanilla')
    assert ours['mean']['bbox_mAP'] == pytest.approx(0.32)
    assert ours['std']['bbox_mAP'] == pytest.approx(0.02 * math.sqrt(2))
    over = ours['over_baseline']['bbox_mAP']  # +0.10 and +0.04; Student's t with 1 degree of freedom is 12.7062
    half = 12.7062 * (0.03**2 + 0.001**2 / 12) ** 0.5  # with the rounding of AP to 0.001
    assert (over['mean'], over['std']) == (pytest.approx(0.07), pytest.approx(0.03 * math.sqrt(2)))
    assert over['interval'] == pytest.approx([0.07 - half, 0.07 + half], abs=1e-6)
    assert over['established'] is False
    assert vanilla['over_baseline']['bbox_mAP'] == {'mean': 0, 'std': 0, 'interval': [0, 0], 'established': False}
    assert ours['mean']['bbox_mAP_l'] is None
    assert set(ours['over_baseline']['bbox_mAP_l'].values()) == {None}
    (alone,) = with_statistics([row('up', 0.3)], 'up')
    assert (alone['mean']['bbox_mAP'], alone['std']['bbox_mAP']) == (0.3, None)
    assert alone['over_baseline']['bbox_mAP']['interval'] is None


@pytest.mark.parametrize(
    ('aps', 'cell'),
    [
        ([(0.254, 0.2), (0.27, 0.2), (0.238, 0.2)], '**+5.4 [+1.4, +9.4]**'),
        ([(0.208, 0.2), (0.213, 0.2), (0.203, 0.2)], '+0.8 [-0.4, +2.0]'),
        ([(0.254, 0.2)], '+5.4 (one seed)'),
    ],
)
def test_a_gain_is_bold_only_with_its_interval(aps, cell):
    def row(name, values):
        checkpoint = {'up': 'up{seed}.pth', 'same': 'same.pth'}.get(name)
        runs = [{'seed': s, 'metrics': dict.fromkeys(AP_NAMES, ap)} for s, ap in enumerate(values)]
        costs = dict.fromkeys(('macs', 'backbone_params', 'params'), 1)
        return {'name': name, 'runs': runs, 'checkpoint': checkpoint, 'sha256': None, 'arch': {'name': name}, **costs}

    ours, vanilla = zip(*aps)
    rows = with_statistics([row('vanilla', vanilla), row('up', ours), row('same', vanilla)], 'vanilla')
    content = {'rows': rows, 'seeds': list(range(len(aps))), 'baseline': 'vanilla', 'kinds': ['bbox'], 'trained': True}
    content |= {'epochs': 1, 'processes': 1, 'machine': 'CPU', 'size': [64, 64], 'speed': None}
    text = as_markdown(DetectorTable.of(content | {'config_sha256': 'c' * 64, 'upvit_mm_version': '0'}))
    assert f'| {cell} |' in text
    assert text.count('**') == (2 if '*' in cell else 0)
    shared = 'up: each seed starts from weights of its own. same: all seeds start from the same weights'
    assert (shared in text) == (len(aps) > 1)
    assert ('One seed: there is no interval' in text) == (len(aps) == 1)
    assert ('over seeds' in text) == (len(aps) > 1)


def test_mistakes_are_found_before_any_training(compare, detector_config, archs, save_backbone, tmp_path):
    wide, narrow = archs('pvtv2')
    good = save_backbone('pvtv2', wide)
    cfg = detector_config('pvtv2')
    for words, options, match in (
        ([f'a={wide}', f'a={narrow}'], {}, "'a' names two of them"),
        ([f'a={wide}'], dict(baseline='b'), "baseline = 'b': must be one of the backbones a"),
        ([f'a={wide}'], dict(seeds=(1, 1)), r'seeds = \[1, 1\]: each once'),
        ([f'a={wide}'], dict(epochs=0), 'epochs = 0'),
        ([f'a={wide}'], dict(jobs=0), 'jobs = 0'),
        (
            [f'a={wide},{good}', f'b={narrow},{good}'],
            {},
            r'backbones: b .* does not fit arch narrow: .*shape',
        ),
        (['a=deit-tiny'], {}, "backbones: a .*arch family = 'deit': this backbone builds pvtv2"),
        (['../a=pvtv2-b0'], {}, "'../a' cannot name a folder"),
        (['detectors.md=pvtv2-b0'], {}, "'detectors.md' cannot name a folder"),
        (['pvtv2-b0'], {}, "'pvtv2-b0' must be NAME=ARCH,CHECKPOINT"),
        ([f'a={wide},'], {}, 'must be NAME=ARCH,CHECKPOINT'),
        (['a=pvtv2-b9'], {}, "arch = 'pvtv2-b9': unknown name"),
    ):
        with pytest.raises(ValueError, match=match):
            compare(cfg, *words, **options)
    with pytest.raises(FileNotFoundError, match=r'a: checkpoint .*no\.pth'):
        compare(cfg, f'a={wide},{tmp_path}/no.pth')
    assert not (tmp_path / 'out').exists()


def test_each_seed_may_have_weights_of_its_own(detector_config, archs, save_backbone, tmp_path):
    _, narrow = archs('pvtv2')
    for seed in (0, 1):
        save_backbone('pvtv2', narrow, seed=seed).rename(tmp_path / f'w{seed}.pth')
    contestant = Contestant.parse(f'up={narrow},{tmp_path}/w{{seed}}.pth')
    assert contestant.to_dict()['sha256'] is None
    job = DetectorComparison(detector_config('pvtv2'), [contestant], DetectorOptions((0, 1)), tmp_path / 'out')
    starts = {seed: job.cfgs['up', seed].model.backbone.init_cfg.checkpoint for seed in (0, 1)}
    assert starts == {seed: f'{tmp_path}/w{seed}.pth' for seed in (0, 1)}
    assert [job.seeded['up', seed].files[0].name for seed in (0, 1)] == ['w0.pth', 'w1.pth']
    with pytest.raises(FileNotFoundError, match=r'up: checkpoint .*w2\.pth'):
        DetectorComparison(detector_config('pvtv2'), [contestant], DetectorOptions((0, 2)), tmp_path / 'out')


def test_configs_that_cannot_be_compared(detector_config):
    def refused(match, change):
        cfg = detector_config('pvtv2')
        change(cfg)
        with pytest.raises(ValueError, match=match):
            check_detector_config(cfg, trained=True)

    refused('test_evaluator: must hold a CocoMetric', lambda cfg: cfg.test_evaluator.update(metric='segm'))
    refused('val_evaluator: must hold a CocoMetric', lambda cfg: cfg.val_evaluator.update(type='VOCMetric'))
    refused("backbone.type = 'ResNet'", lambda cfg: cfg.model.backbone.update(type='ResNet'))
    refused("load_from = 'x.pth': would overwrite", lambda cfg: cfg.update(load_from='x.pth'))
    refused('must be there and count epochs', lambda cfg: cfg.train_cfg.update(type='IterBasedTrainLoop'))
    refused('the config is of a classifier', lambda cfg: cfg.update(default_scope='mmpretrain'))
    refused('model.neck: must be there', lambda cfg: cfg.model.pop('neck'))
    check_detector_config(detector_config('pvtv2'), trained=True)
