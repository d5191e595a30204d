"""The steps of the experiment: commands that the tools understand, in an order that works."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from mmengine.config import Config

from upvit_mm.arch import ArchSpec
from upvit_mm.evidence.experiment import outdated, plans_of, steps_of
from upvit_mm.evidence.results import StudyFound
from upvit_mm.evidence.run import Run
from upvit_mm.evidence.studies import (
    ROWS,
    SCALES,
    SIZES,
    STUDIES,
    TITLES,
    VIT_WEIGHTS,
    check_run,
    studies_of,
)
from upvit_mm.installed import TOOLS
from upvit_mm.pruning.costs import count_macs

ROOT = Path('/work-dir')


def steps_at(scale: str, studies=STUDIES, seeds=(0, 1), ranks=(0, 1, 2, 3)):
    return steps_of(plans_of(studies, seeds, scale, ROOT), ranks)


@pytest.mark.parametrize('scale', SCALES)
def test_every_need_is_a_step_and_each_output_has_one_step(scale):
    steps = steps_at(scale)
    names = {step.name for step in steps}
    assert len(names) == len(steps)
    assert all(need in names for step in steps for need in step.needs)
    by_name = {step.name: step for step in steps}
    assert all(by_name[need].rank <= step.rank for step in steps for need in step.needs)  # a low rank never waits
    trained = [step.output for step in steps if not step.resumes]
    assert (
        len(set(trained))
        == len(trained)
        == 2
        * sum(1 for study in STUDIES for row in study.rows if study.is_detector or row.how in ('dense', 'continued'))
    )


def test_the_tools_understand_every_command(monkeypatch):
    tools = {}
    for step in steps_at('cpu', seeds=(0,)):
        name, *words = step.command
        if name not in tools:
            spec = spec_from_file_location(f'tool_{name}', TOOLS / f'{name}.py')
            tools[name] = module_from_spec(spec)
            spec.loader.exec_module(tools[name])
        monkeypatch.setattr(sys, 'argv', [name, *words])
        args = tools[name].parse_args()
        assert Path(args.work_dir) == step.folder
    assert set(tools) == {'train', 'prune', 'compare_detectors', 'compare_consistency', 'compare_classifiers'}


def test_rows_get_the_epochs_that_the_comparison_promises():
    (study,) = studies_of(['bccd'], ['ViT-S'])
    epochs = {row.name: study.epochs(row, 'cpu') for row in study.rows}
    dense, tuned = epochs['dense'], epochs['up-50']
    assert (dense, tuned) == (8, 4)
    others = {name: value for name, value in epochs.items() if name not in ('dense', 'vanilla-50-long')}
    assert len(others) == 10
    assert set(others.values()) == {tuned}
    assert epochs['vanilla-50-long'] == dense + tuned
    assert {row.name for row in ROWS} == set(TITLES)


def test_rivals_have_the_widths_of_up():
    commands = {
        step.name.split('/', 3)[3]: step.command for step in steps_at('cpu', studies_of(['bccd'], ['ViT-S']), (3,))
    }
    folder = ROOT / 'bccd/ViT-S/seed3'
    ways = {step.name.split('/', 3)[3]: step.way for step in steps_at('cpu', studies_of(['bccd'], ['ViT-S']), (3,))}
    assert {name for name, way in ways.items() if way} == {'up-50/prune', 'up-25/prune'}  # with low-rank attention
    assert commands['up-50/prune'][3:7] == ('--budget', 'macs=50%@196x252', '--seed', '3')
    shape = ('--target', str(folder / 'up-50/pruned/arch.json'), '--method')
    for method in ('magnitude', 'random'):
        assert commands[f'{method}-50/prune'][3:7] == (*shape, method)
        assert commands[f'{method}-50/train'][1] == str(folder / f'{method}-50/pruned/detector_distil.py')
    assert 'load_from=None' in commands['vanilla-50/train']


def test_token_dropping_is_judged_at_once_with_the_weights_of_the_dense_detector():
    steps = {step.name.split('/', 3)[3]: step for step in steps_at('cpu', studies_of(['bccd'], ['ViT-S']), (3,), (0,))}
    folder = ROOT / 'bccd/ViT-S/seed3'
    once, train = steps['dropping-50/at-once'], steps['dropping-50/train']
    config, dense = folder / 'dropping-50/detector.py', folder / 'dense/train/epoch_8.pth'
    assert once.command[-1] == f'dropping-50={config},{dense}'
    assert once.texts == train.texts
    ((path, text),) = once.texts
    assert path == config
    assert str(folder / 'up-50/pruned/arch.json') in text


def test_without_a_teacher_nothing_else_differs():
    steps = {step.name.split('/', 3)[3]: step for step in steps_at('cpu', studies_of(['bccd'], ['ViT-S']), (3,))}
    alone, taught = steps['up-50-alone/train'], steps['up-50/train']
    pruned = ROOT / 'bccd/ViT-S/seed3/up-50/pruned'
    assert (alone.command[1], taught.command[1]) == (str(pruned / 'detector.py'), str(pruned / 'detector_distil.py'))
    assert alone.command[4:] == taught.command[4:]
    assert alone.needs == taught.needs
    alone, taught = steps['dropping-50-alone/train'], steps['dropping-50/train']
    ((path, text),), ((_, whole),) = alone.texts, taught.texts
    assert str(path) == alone.command[1]
    assert whole.startswith(text)
    assert 'FollowDense' in whole.removeprefix(text)
    assert 'FollowDense' not in text
    assert alone.command[4:] == taught.command[4:]


def test_later_rows_of_a_classifier_join_the_comparison_of_their_shape():
    steps = steps_at('cpu', studies_of(['cifar10'], ['PVTv2-B0']), (1,))
    rows = {}
    for step in steps:
        if step.command[0] == 'compare_classifiers':
            words = step.command
            rows[step.name.split('/', 3)[3]] = words[words.index('--rows') + 1 : words.index('--seeds')]
    assert rows == {
        'up-50/compare0': ('compensated-distilled', 'vanilla'),
        'up-50/compare1': ('compensated-distilled', 'vanilla', 'compensated'),
        'up-25/compare2': ('compensated-distilled',),
        'magnitude-50/compare2': ('compensated-distilled',),
        'up-50/compare3': ('compensated-distilled', 'vanilla', 'compensated', 'vanilla-long'),
        'random-50/compare3': ('compensated-distilled',),
    }
    folder, name = ROOT / 'cifar10/PVTv2-B0/seed1', 'cifar10/PVTv2-B0/seed1/'
    after = {step.name.removeprefix(name): step.needs for step in steps}
    assert after['up-50/compare3'] == (f'{name}dense/train', f'{name}up-50/compare1')  # never two in one folder
    assert after['random-50/compare3'] == (f'{name}dense/train', f'{name}up-50/compare0')
    outputs = {step.name.removeprefix(name): step.output for step in steps}
    keys = {0: 'compensated-distilled', 1: 'compensated', 3: 'vanilla-long'}
    assert {rank: outputs[f'up-50/compare{rank}'] for rank in keys} == {
        rank: folder / f'up-50/compared/{key}/seed1/record.json' for rank, key in keys.items()
    }


def test_a_high_rank_alone_brings_what_it_needs():
    names = [step.name.split('/', 3)[3] for step in steps_at('cpu', studies_of(['cifar10'], ['PVTv2-B0']), (1,), (3,))]
    needed = ['dense/train', 'up-50/compare0', 'up-50/compare1', 'up-50/compare3', 'random-50/compare3']
    assert sorted(names) == sorted(needed)


def test_a_repeated_experiment_keeps_the_rows_of_all_ranks(tmp_path):
    """Each rank writes compare.json of the same folder; what a lower rank found must not count as changed by that."""
    code = (
        'import json, sys, pathlib\n'
        "words = sys.argv[1:]; folder = pathlib.Path(words[words.index('--work-dir') + 1])\n"
        'folder.mkdir(parents=True, exist_ok=True)\n'
        "if words[0] == 'train':\n"
        "    [(folder / f'epoch_{k}.pth').touch() for k in (2, 4)]\n"
        'else:\n'
        "    keys = words[words.index('--rows') + 1 : words.index('--seeds')]\n"
        '    for key in keys:\n'
        "        path = folder / key / 'seed1/record.json'\n"
        '        path.parent.mkdir(parents=True, exist_ok=True)\n'
        '        path.write_text(json.dumps({"top1": [float(len(key))] * (6 if "long" in key else 2)}))\n'
        "    costs = {'macs': 1, 'params': 1}\n"
        '    content = {"rows": keys, "dense": {"top1": 9.0, **costs}, "target": costs}\n'
        "    content['one_shot'] = {'compensated': {'top1': 8.0}}\n"
        "    (folder / 'compare.json').write_text(json.dumps(content))\n"
    )
    plans = plans_of(studies_of(['cifar10'], ['PVTv2-B0']), (1,), 'cpu', tmp_path)
    ran = []
    for ranks in ((0,), (0, 1), (0, 1), (0, 1, 3), (0,)):
        said = []
        run = Run(steps_of(plans, ranks), tmp_path, 'cpu', 1, 1, said.append)
        run.program = (sys.executable, '-c', code)
        assert set(run.go().values()) == {'done'}
        ran.append([line.split(':')[0].split('/', 3)[3] for line in said if ' done in ' in line])
    first = ['dense/train', 'up-50/compare0', 'dense-on/train']
    assert ran == [first, ['up-50/compare1'], [], ['up-50/compare3', 'random-50/compare3'], []]
    found = StudyFound.of(plans)
    expected = {'up-50': 21, 'vanilla-50': 7, 'up-50-alone': 11, 'vanilla-50-long': 12, 'random-50': 21}
    assert {name: found.values(name, 'top-1')[1] for name in expected} == expected
    assert outdated(plans, tmp_path) == []
    (tmp_path / 'cifar10/PVTv2-B0/seed1/up-50/compared/compensated/seed1/record.json').write_text(
        '{"top1": [1.0, 2.0]}'
    )
    assert outdated(plans, tmp_path) == ['cifar10/PVTv2-B0/seed1/up-50/compare1']


def test_slow_pictures_are_judged_once():
    """Neither trainings nor prunings evaluate; the steps at once and at the end do, each network once."""
    steps = {step.name.split('/', 3)[3]: step for step in steps_at('cpu', studies_of(['nuclei'], ['ViT-S']), (3,))}
    folder = ROOT / 'nuclei/ViT-S/seed3'
    never = 'train_cfg.val_begin=1000000'
    assert all(never in step.command for name, step in steps.items() if name.endswith('/train'))
    for row in ('up-50', 'up-25', 'magnitude-50', 'random-50'):
        prune, once = steps[f'{row}/prune'].command, steps[f'{row}/at-once']
        assert prune[prune.index('--eval-images') + 1] == '0'
        assert once.command[-1] == f'{row}={folder}/{row}/pruned/detector.py,{folder}/{row}/pruned/detector.pth'
        assert once.texts == ()
    quick = steps_at('cpu', studies_of(['bccd'], ['ViT-S']), (3,))
    assert not any(never in step.command or '--eval-images' in step.command for step in quick)
    once = [step.name for step in quick if 'at-once' in step.name]
    assert once == [f'bccd/ViT-S/seed3/dropping-{share}/at-once' for share in (50, 25)]


def test_the_dense_classifier_is_trained_on_like_the_pruned_one():
    steps = {step.name: step for step in steps_at('cpu', studies_of(['cifar10'], ['PVTv2-B0']), (1,), (0,))}
    on, compared = (steps[f'cifar10/PVTv2-B0/seed1/{name}'] for name in ('dense-on/train', 'up-50/compare0'))
    folder = ROOT / 'cifar10/PVTv2-B0/seed1'
    assert on.command[-4:] == (
        'train_cfg.max_epochs=2',
        'randomness.seed=1',
        f'load_from={folder}/dense/train/epoch_4.pth',
        'optim_wrapper.optimizer.lr=5e-4',
    )
    words = compared.command
    assert 'eval_images=10000' in words  # the whole set: by default 1000 judge what pruning leaves
    assert (words[words.index('--epochs') + 1], words[words.index('--finetune-lr') + 1]) == ('2', '5e-4')


def test_a_detector_waits_for_the_classifier_of_its_start_weights():
    steps = {step.name: step for step in steps_at('cpu', studies_of(['bccd'], ['PVTv2-B0']), (1,), (0,))}
    dense = steps['bccd/PVTv2-B0/seed1/dense/train']
    (need,) = dense.needs
    assert steps[need].output == ROOT / 'cifar10/PVTv2-B0/seed1/dense/train/epoch_4.pth'
    assert f'model.backbone.init_cfg.checkpoint={steps[need].output}' in dense.command


@pytest.mark.parametrize('scale', SCALES)
@pytest.mark.parametrize('study', STUDIES, ids=lambda study: study.name)
def test_sizes_are_those_of_the_configs(study, scale, monkeypatch):
    """Costs are counted in the padded pictures of BCCD, and in the enlarged training crops of nuclei."""
    monkeypatch.setenv('UPVIT_MM_SCALE', scale)
    cfg = Config.fromfile(TOOLS.parent / f'configs/real/{study.config}.py')
    height, width = SIZES[study.data, study.family][scale]
    if study.is_detector:
        unit = cfg.model.data_preprocessor.pad_size_divisor
        sides = [int(side * cfg.zoom + 0.5) for side in cfg.crop] if study.data == 'nuclei' else cfg.size
        assert (width, height) == tuple(-(-side // unit) * unit for side in sides)
    assert count_macs(ArchSpec.from_dict(cfg.arch), (height, width)) > 0


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"data = 'coco': must be one of bccd, cifar10, nuclei"):
        studies_of(['coco'])
    with pytest.raises(ValueError, match='families = DeiT-micro: none of them is compared on bccd; known: bccd/ViT-S'):
        studies_of(['bccd'], ['DeiT-micro'])


def test_what_is_missing_is_said_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    studies = studies_of(['bccd'])
    with pytest.raises(FileNotFoundError, match=r"folder 'data/bccd' does not exist here; .*prepare_data.py bccd"):
        check_run(studies, jobs=1)
    (tmp_path / 'data/bccd').mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"'checkpoints/dinov2-small.pth' do not exist here"):
        check_run(studies_of(['bccd'], ['ViT-S']), jobs=1)
    with pytest.raises(FileNotFoundError, match="data = 'cifar10'"):  # its start weights come from there
        check_run(studies_of(['bccd'], ['PVTv2-B0']), jobs=1)
    (tmp_path / 'data/cifar10').mkdir()
    check_run(studies_of(['bccd'], ['PVTv2-B0']), jobs=1)
    check_run(studies, jobs=1, report_only=True)  # runs nothing
    with pytest.raises(ValueError, match='jobs = 0: must be at least 1'):
        check_run(studies, jobs=0)
    for study in studies:
        if study.family == 'ViT-S':
            cfg = Config.fromfile(TOOLS.parent / f'configs/real/{study.config}.py')
            assert cfg.model.backbone.init_cfg.checkpoint == str(VIT_WEIGHTS)
