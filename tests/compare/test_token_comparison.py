"""``tools/compare_consistency.py``: rows over seeds, token dropping at equal MACs, and what predicts AP."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fixtures import forked
from mmengine.config import Config

from upvit_mm.arch import ArchSpec
from upvit_mm.compare.contestants import Contestant
from upvit_mm.compare.paired import paired_difference
from upvit_mm.compare.tokens import Field, differences, groups_of, predictors_of, read_ap
from upvit_mm.models import UPPVTv2
from upvit_mm.pruning import make_plan, prunable_dims, slice_state

ROOT = Path(__file__).parents[2]
CONFIG = 'configs/demo/up-pvtv2-micro_digits.py'
DENSE = ArchSpec.from_json(ROOT / 'configs/_base_/archs/pvtv2-micro.json')


@pytest.fixture
def files(tmp_path):
    """``dense.pth``; ``half.pth`` with ``arch.json``, every second channel of it; ``other.pth``, from scratch."""
    torch.manual_seed(0)
    state = {f'backbone.{k}': v for k, v in UPPVTv2(DENSE).state_dict().items()}
    plan = make_plan(DENSE, {name: range(0, dim.size, 2) for name, dim in prunable_dims(DENSE).items()})
    half = slice_state(state, plan)
    other = {f'backbone.{k}': v for k, v in UPPVTv2(plan.target_arch).state_dict().items()}
    for name, tensors in (('dense', state), ('half', half), ('other', other)):
        torch.save({'state_dict': tensors}, tmp_path / f'{name}.pth')
    plan.target_arch.save_json(tmp_path / 'arch.json')
    return tmp_path


@pytest.fixture
def contestant(files):
    """``contestant(name, file)``: a network of half the widths."""
    return lambda name, file: Contestant.parse(f'{name}={files / "arch.json"},{files / file}')


def run_tool(*words) -> subprocess.CompletedProcess[str]:
    env = os.environ | {'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
    command = [sys.executable, 'tools/compare_consistency.py', *map(str, words)]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=1800, check=False)


def test_rows_and_names(files, contestant):
    cfg = Config.fromfile(ROOT / CONFIG)
    entries = [contestant('up', 'half.pth'), contestant('vanilla', 'other.pth'), contestant('up', 'half.pth')]
    field = Field.of(cfg, str(files / 'dense.pth'), entries, ['zeros', 'last'], 'vanilla')
    dropping = {f'token dropping, {fill}': [f'token dropping, {fill}'] for fill in ('zeros', 'last')}
    assert field.groups == {'up': ['up 0', 'up 1'], 'vanilla': ['vanilla'], **dropping}
    assert list(field.networks) == ['up 0', 'vanilla', 'up 1', *dropping]
    pruned = field.networks['vanilla'].macs((256, 320))
    assert field.networks['token dropping, zeros'].macs((256, 320)) == pytest.approx(pruned, rel=0.01)
    with pytest.raises(ValueError, match=r"equal_macs = 'dense': must be one of up, vanilla"):
        Field.of(cfg, str(files / 'dense.pth'), entries, ['zeros'], 'dense')
    with pytest.raises(ValueError, match='networks: up has no checkpoint; give up=ARCH,CHECKPOINT'):
        Field.of(cfg, str(files / 'dense.pth'), [Contestant.parse(f'up={files / "arch.json"}')])


def test_differences():
    """Networks in the order of their rows; token dropping, which has no seed, against each of the first row's."""
    values = {'up 0': 0.9, 'up 1': 0.8, 'up 2': 0.7, 'a 0': 0.85, 'a 1': 0.75, 'a 2': 0.68, 'b': 0.5}
    values |= {'c 0': 0.1, 'c 1': float('nan'), 'c 2': 0.1, 'token dropping, zeros': 0.6}
    results = {name: {'64x64': {'s': {'grid': [2, 2], 'tokens': 4, 'cka': v}}} for name, v in values.items()}
    results['a 0']['64x64']['s']['kept_error'] = 0.1  # the first row has none
    groups = {title: [f'{title} {k}' for k in range(3)] for title in ('up', 'a', 'c')}
    groups |= {title: [title] for title in ('b', 'token dropping, zeros')}
    over = differences(results, groups)
    assert over['to'] == 'up'
    found = {title: sizes['64x64']['s'] for title, sizes in over['rows'].items()}
    assert list(found) == ['a', 'c', 'b', 'token dropping, zeros']
    assert found['a'] == {'cka': paired_difference([-0.05, -0.05, -0.02], [0, 0, 0])}
    assert found['a']['cka']['established'] is False
    assert found['token dropping, zeros'] == {'cka': paired_difference([-0.3, -0.2, -0.1], [0, 0, 0])}
    assert found['b']['cka'] == {'mean': -0.4, 'std': None, 'interval': None, 'established': None}
    assert set(found['c']['cka'].values()) == {None}
    assert 'Bold: the interval is wholly above or below 0.' in over['how']
    assert 'All networks are compared with one dense network' in over['how']
    assert over['how'].endswith('spread. b has 1 of the 3 seeds of up: others have no pair.')
    assert differences(results, {'b': ['b'], 'a': groups['a']})['how'].startswith('One seed: there is no interval')


def test_ap_of_detectors(tmp_path):
    path = tmp_path / 'detectors.json'
    path.write_text(json.dumps({'rows': [{'name': n, 'mean': {'bbox_mAP': ap}} for n, ap in (('a', 0.25), ('b', 1))]}))
    assert read_ap(path, 'bbox_mAP') == {'a': 0.25, 'b': 1.0}
    with pytest.raises(ValueError, match='a has no segm_mAP; known: bbox_mAP'):
        read_ap(path, 'segm_mAP')
    path.write_text(json.dumps({'rows': [{'name': 'a', 'mean': {'bbox_mAP': 0.25, 'bbox_mAP_l': None}}]}))
    assert read_ap(path, 'bbox_mAP') == {'a': 0.25}
    with pytest.raises(ValueError, match=r'bbox_mAP_l of a is null: .* no objects of that size.* a value: bbox_mAP\.'):
        read_ap(path, 'bbox_mAP_l')
    path.write_text('{"rows": [{}]}')
    with pytest.raises(ValueError, match=r'is not a detectors\.json of tools/compare_detectors\.py'):
        read_ap(path, 'bbox_mAP')


def test_what_predicts_ap(contestant):
    """Seeds of a row are its mean where the row has an AP, and stand alone where they have."""
    names = ['up', 'vanilla', 'up', 'random', 'zeros']
    groups = groups_of([contestant(name, 'half.pth') for name in names])
    assert groups == {'up': ['up 0', 'up 1'], 'vanilla': ['vanilla'], 'random': ['random'], 'zeros': ['zeros']}
    ap = dict.fromkeys(names, 0.1)
    assert predictors_of(groups, ap) == groups
    by_seed = {**ap, 'up 0': 0.1, 'up 1': 0.2}
    del by_seed['up']
    assert list(predictors_of(groups, by_seed)) == ['up 0', 'up 1', 'vanilla', 'random', 'zeros']
    with pytest.raises(ValueError, match="'up' has no quality to predict; known: vanilla, random, zeros"):
        predictors_of(groups, {n: 0.1 for n in names[1:] if n != 'up'})
    with pytest.raises(ValueError, match='3 networks: a rank correlation needs at least 4'):
        predictors_of({name: [name] for name in names[:2] + names[3:4]}, ap)


def test_the_tool_refuses_before_it_loads_anything(tmp_path):
    """The dense network and the images do not exist."""
    (tmp_path / 'a.pth').touch()
    rows = [{'name': name, 'mean': {'bbox_mAP': 0.1}} for name in 'abc']
    (tmp_path / 'detectors.json').write_text(json.dumps({'rows': rows}))
    arch = ROOT / 'configs/_base_/archs/pvtv2-micro.json'
    words = ['no.py', 'no.pth', '--images', 'no', '--networks', *(f'{n}={arch},{tmp_path / "a.pth"}' for n in 'abc')]
    words += ['--detectors', tmp_path / 'detectors.json', '--device', 'cpu', '--work-dir', tmp_path / 'out']
    words = ['tools/compare_consistency.py', *map(str, words)]
    status, said = forked.run(words, ROOT, os.environ | {'PYTHONPATH': str(ROOT)})
    assert status == 1
    assert said.splitlines()[-1].startswith('error: 3 networks: a rank correlation needs at least 4')


def test_the_tool(files, digits_folder, tmp_path):
    aps = {'same': 0.4, 'half': 0.3, 'other': 0.1, 'fourth': 0.2}
    rows = [{'name': name, 'mean': {'bbox_mAP': ap}} for name, ap in aps.items()]
    (tmp_path / 'detectors.json').write_text(json.dumps({'rows': rows}))
    small = [f'{name}={files / "arch.json"},{files / file}' for name, file in (('half', 'half.pth'),)]
    others = ('other', 'fourth', 'fourth')  # the last is a row over two seeds
    small += [f'{name}={files / "arch.json"},{files / "other.pth"}' for name in others]
    words = [CONFIG, files / 'dense.pth', '--networks', f'same={ROOT / "configs/_base_/archs/pvtv2-micro.json"},']
    words[-1] += str(files / 'dense.pth')
    words += [*small, '--images', digits_folder / 'annotations/instances_val.json', '--sizes', '64', '96x128']
    words += ['--detectors', tmp_path / 'detectors.json', '--pictures', 1, '--work-dir', tmp_path / 'out']
    done = run_tool(*words, '--drop-tokens', 'zeros', '--equal-macs', 'half')
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    names = {path.name for path in (tmp_path / 'out').iterdir()}
    assert names == {'contrast.md', 'contrast.csv', 'contrast.json', 'contrast.png', 'queries.png', 'predicted.png'}
    content = json.loads((tmp_path / 'out/contrast.json').read_text())
    last = {name: found['96x128']['stage3']['cka'] for name, found in content['results'].items()}
    assert last['same'] == pytest.approx(1.0)
    assert last['other'] == last['fourth 0'] == last['fourth 1'] < last['half'] < 1
    assert 'token dropping, zeros' in last
    assert {row['networks'] for row in content['predicted']['rows']} == {4}
    text = (tmp_path / 'out/contrast.md').read_text()
    assert '## Does it predict AP?' in text
    assert '## Over same, stage3, 96x128' in text
    assert f'| half | {last["half"] - last["same"]:+.4f} (one seed) |' in text
    assert 'One seed: there is no interval' in text
    assert 'tools/compare_consistency.py' in text
