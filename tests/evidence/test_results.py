"""Figures of an experiment, read from what the tools write; differences, words and correlations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from upvit_mm.evidence.experiment import finished_plans, plans_of, report
from upvit_mm.evidence.report import (
    correlation_table,
    correlations,
    headline,
    minutes_table,
    rows_table,
    write_report,
)
from upvit_mm.evidence.results import AT_ONCE, StudyFound, rank_correlation, variants
from upvit_mm.evidence.studies import ROWS, SHORT, TITLES, studies_of

AP = {'dense': (40.0, 42.0, 41.0), 'up-50': (39.5, 41.0, 40.9), 'vanilla-50': (10.0, 14.0, 11.0)}
CKA = {'up-50': (0.99, 0.97, 0.995), 'magnitude-50': (0.8, 0.7, 0.75)}


def write(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture
def detectors(tmp_path) -> StudyFound:
    """Three seeds of a detector's study; the third has no vanilla network yet."""
    plans = plans_of(studies_of(['bccd'], ['ViT-S']), (0, 1, 2), 'cpu', tmp_path)
    for k, plan in enumerate(plans):
        rows = [
            {
                'name': name,
                'runs': [{'metrics': {'bbox_mAP': aps[k] / 100, 'bbox_mAP_50': 0.6}}],
                'macs': 5e9 if name == 'dense' else 2.5e9,
                'detector_macs': 6e9,
                'params': 2e7,
            }
            for name, aps in AP.items()
            if (name, k) != ('vanilla-50', 2)
        ]
        speed = {'detectors': {name: {'latency': {'median': 0.1}} for name in AP}} if k == 0 else None
        write(plan.folder / 'evaluated0/detectors.json', {'rows': rows, 'speed': speed})
        write(
            plan.folder / 'up-50/pruned/report.json',
            {'held_out': {'compensated': {'coco/bbox_mAP': (0.33, 0.31, 0.32)[k]}}},
        )
        results = {name: {'196x252': {'stage0': {'cka': values[k]}}} for name, values in CKA.items()}
        write(plan.folder / 'consistency0/contrast.json', {'results': results})
    return StudyFound.of(plans)


def test_figures_of_a_detector(detectors):
    assert detectors.metrics == ['box AP']
    assert detectors.values('dense', 'box AP') == pytest.approx(dict(enumerate(AP['dense'])))
    assert detectors.values('vanilla-50', 'box AP') == pytest.approx({0: 10, 1: 14})
    assert detectors.values('up-50', 'box AP', 'one_shot') == pytest.approx({0: 33, 1: 31, 2: 32})
    assert detectors.values('up-50', 'cka', 'consistency') == dict(enumerate(CKA['up-50']))
    assert detectors.values('dense', 'latency', 'costs') == {0: 0.1}


def test_differences_are_paired_over_the_seeds_that_both_have(detectors):
    found = detectors.difference('up-50', 'dense', 'box AP')
    assert (found['seeds'], found['mean'], found['established']) == ([0, 1, 2], pytest.approx(-1.6 / 3), False)
    against = detectors.difference('up-50', 'vanilla-50', 'box AP')
    assert (against['seeds'], against['mean']) == ([0, 1], pytest.approx(28.25))
    low, high = against['interval']  # differences 29.5 and 27: 28.25 -+ 12.7062 * sqrt((1.7678 ** 2 + 0.01 / 6) / 2)
    assert (low, high) == (pytest.approx(12.363, abs=1e-3), pytest.approx(44.137, abs=1e-3))
    assert detectors.difference('up-50', 'random-50', 'box AP') is None
    at_once = detectors.difference('up-50', 'dense', 'box AP', at_once=True)  # -7, -11, -9
    assert (at_once['mean'], at_once['std'], at_once['established']) == (pytest.approx(-9), pytest.approx(2), True)
    assert detectors.difference('up-50', 'vanilla-50', 'box AP', at_once=True) is None


def test_the_report_says_in_words_what_is_established(detectors, tmp_path):
    about = {'scale': 'cpu', 'machine': 'a CPU', 'command': 'python tools/evidence.py', 'minutes': {}, 'outdated': []}
    text = write_report(tmp_path, [detectors], about).read_text()
    assert 'UP, half of the MACs against dense: -0.5, not established: the interval includes 0.' in text
    assert 'epochs of UP: +28.2, established: above.' in text
    assert 'box AP at once, UP, half of the MACs against dense: -9.0, established: below.' in text
    assert 'MACs of the backbone at 196x252 pixels.' in text
    assert '| network | seeds | epochs | MACs | of the detector | params | ms |' in text
    assert '| dense | 3 | 8 | 5000 M | 6000 M | 20.0 M | 100 | - | 41.0 ± 1.0 | - |' in text
    assert 'are there, but not from' not in text
    text = write_report(tmp_path, [detectors], about | {'outdated': ['a/train', 'b/prune']}).read_text()
    assert 'The command below makes them anew: a/train, b/prune.' in text
    content = json.loads((tmp_path / 'evidence.json').read_text())
    assert content['studies'][0]['seeds']['1']['up-50']['score'] == {'box AP': pytest.approx(41.0)}


def test_rank_correlation_with_the_share_of_the_dense_ap(detectors):
    """Shares after training 0.9875, 0.976, 0.998: in the order of CKA, and not of AP at once."""
    found = rank_correlation(variants([detectors], 'cka', 'box AP'))
    assert (found['rho'], found['variants']) == (pytest.approx(1.0), 3)
    assert [one.after for one in variants([detectors], 'cka', 'box AP')] == pytest.approx([0.9875, 41 / 42, 40.9 / 41])
    assert rank_correlation(variants([detectors], AT_ONCE, 'box AP'))['rho'] == pytest.approx(0.5)
    assert rank_correlation(variants([detectors], 'relation', 'box AP')) == {'rho': None, 'p': None, 'variants': 0}
    assert [(entry['measure'], entry['over'].keys()) for entry in correlations([detectors])] == [
        ('cka', {'all', 'pruned', 'at once', 'pruned, at once'}),
        (AT_ONCE, {'all', 'pruned', 'at once', 'pruned, at once'}),
    ]
    at_once = variants([detectors], 'cka', 'box AP', at_once=True)
    assert [(one.before, one.after) for one in at_once] == [
        (0.99, pytest.approx(33 / 40)),
        (0.97, pytest.approx(31 / 42)),
        (0.995, pytest.approx(32 / 41)),
    ]
    by_measure = {entry['measure']: entry['over']['at once'] for entry in correlations([detectors])}
    assert by_measure['cka']['rho'] == pytest.approx(0.5)
    assert by_measure[AT_ONCE] == {'rho': None, 'p': None, 'variants': 0}  # it would be compared with itself
    assert correlation_table([detectors]).columns == [
        'measure before training',
        'after training, all (3 variants)',
        'after training, without token dropping (3 variants)',
        'AP at once instead, all (3 variants)',
        'AP at once, without token dropping (3 variants)',
    ]
    for rows in detectors.by_seed.values():
        rows['up-50'].consistency['cka'] = 1.0
    assert rank_correlation(variants([detectors], 'cka', 'box AP'))['rho'] is None


def test_pruned_networks_are_correlated_without_token_dropping_too(detectors):
    """Two groups far apart correlate by their places, whatever holds within each of them."""
    for seed, rows in detectors.by_seed.items():
        own = rows['dropping-50']
        own.consistency['cka'], own.score['box AP'] = 0.5 + 0.01 * seed, 60.0 - seed  # far from the others, and better
    (cka, _) = correlations([detectors])
    every = cka['over']['all']  # squares of 5, 2, 2, 3, 3 and 3 ranks apart: 1 - 6 * 60 / 210
    assert (every['rho'], every['variants']) == (pytest.approx(1 - 360 / 210), 6)
    assert (cka['over']['pruned']['rho'], cka['over']['pruned']['variants']) == (pytest.approx(1.0), 3)


def test_rows_of_another_rank_are_not_read(detectors, tmp_path):
    """An older version judged rows together in other ways; a higher rank's folder would win."""
    plans = plans_of(studies_of(['bccd'], ['ViT-S']), (0, 1, 2), 'cpu', tmp_path)
    row = {'macs': 1, 'detector_macs': 1, 'params': 1, 'runs': [{'metrics': {'bbox_mAP': 0.9}}]}
    rows = [row | {'name': name} for name in ('dense', 'an-old-name', 'up-25')]
    write(plans[0].folder / 'evaluated2/detectors.json', {'rows': rows})
    found = StudyFound.of(plans)
    assert found.values('dense', 'box AP') == detectors.values('dense', 'box AP')
    assert found.values('up-25', 'box AP') == {0: 90}


def test_a_row_that_is_known_at_once_only_is_in_the_table(detectors):
    detectors.by_seed[1]['up-25'].one_shot['box AP'] = 38.0
    (row,) = [row for row in rows_table(detectors).texts() if row[0] == TITLES['up-25']]
    assert row[1:] == ['0', '4', '-', '-', '-', '-', '38.0', '-', '-']


def test_token_dropping_at_once_is_read_from_its_own_evaluation(tmp_path):
    (plan,) = plans_of(studies_of(['bccd'], ['ViT-S']), (0,), 'cpu', tmp_path)
    row = {'name': 'dropping-50', 'runs': [{'metrics': {'bbox_mAP': 0.123}}]}
    write(plan.folder / 'dropping-50-at-once/detectors.json', {'rows': [row]})
    found = StudyFound.of([plan])
    assert found.values('dropping-50', 'box AP', 'one_shot') == {0: pytest.approx(12.3)}
    assert found.metrics == []  # nothing was trained


@pytest.mark.parametrize(('up', 'row'), [('up-50', 'dropping-50'), ('up-25', 'dropping-25'), ('random-50', None)])
def test_token_dropping_is_at_the_cost_of_the_row_beside_it(tmp_path, up, row):
    (plan,) = plans_of(studies_of(['bccd'], ['ViT-S']), (0,), 'cpu', tmp_path)
    results = {up: {'8x8': {'block2': {'cka': 0.5}, 'block5': {'cka': 0.9}}}}
    results['token dropping, last'] = {'8x8': {'block2': {'cka': 0.3}, 'block5': {'cka': 0.4}}}
    write(plan.folder / 'consistency1/contrast.json', {'results': results})
    (rows,) = StudyFound.of([plan]).by_seed.values()
    found = {name: own.consistency['cka'] for name, own in rows.items() if own.consistency}
    assert found == {up: 0.9} | ({row: 0.4} if row else {})  # at the last stage


def test_the_headline_has_the_rows_of_the_main_claim(detectors):
    table = headline([detectors])
    (row,) = table.texts()
    assert dict(zip(table.columns, row)) == {
        '': 'bccd, ViT-S, box AP',
        'seeds': '3',
        'dense': '41.0 ± 1.0',
        'UP, half, at once': '32.0 ± 1.0',
        'UP, half': '40.5 ± 0.8',
        'vanilla': '12.0 ± 2.8',
        'dense, trained on': '-',
        'vanilla, long': '-',
        'token dropping, at once': '-',
        'token dropping': '-',
    }
    assert set(SHORT) == set(TITLES) == {row.name for row in ROWS}


def test_the_report_covers_all_that_is_finished(tmp_path, capsys):
    """Runs on other data and seeds share the work dir; each would leave the others out of its report."""
    for study, seed in (('bccd', 0), ('bccd', 12), ('nuclei', 1)):
        (plan,) = plans_of(studies_of([study], ['ViT-S']), (seed,), 'cpu', tmp_path)
        row = {'name': 'dense', 'runs': [{'metrics': {'bbox_mAP': 0.4}}], 'macs': 1, 'detector_macs': 1, 'params': 1}
        write(plan.folder / 'evaluated0/detectors.json', {'rows': [row]})
        write(plan.folder / 'minutes.json', {f'{plan.study.name}/seed{seed}/dense/train': 2.0})
    (plan.folder.parent / 'seed0.old').mkdir()
    (tmp_path / 'bccd/PVTv2-B0/seed3').mkdir(parents=True)  # begun, no figures
    found = [[(plan.study.name, plan.seed) for plan in plans] for plans in finished_plans('cpu', tmp_path)]
    assert found == [[('bccd/ViT-S', 0), ('bccd/ViT-S', 12)], [('nuclei/ViT-S', 1)]]
    report('cpu', tmp_path)
    assert capsys.readouterr().out.split() == [str(tmp_path / f'evidence.{end}') for end in ('md', 'html')]
    content = json.loads((tmp_path / 'evidence.json').read_text())
    assert [study['data'] for study in content['studies']] == ['bccd', 'nuclei']
    assert len(content['minutes']) == 3
    names = ['bccd/ViT-S/seed0', 'bccd/ViT-S/seed12', 'nuclei/ViT-S/seed1']
    assert sorted(content['outdated']) == [f'{name}/all/evaluate0' for name in names]  # no record of a step


def test_minutes_are_means_over_seeds():
    minutes = {'bccd/ViT-S/seed0/dense/train': 6.0, 'bccd/ViT-S/seed1/dense/train': 8.0}
    minutes |= {'nuclei/ViT-S/seed0/dense/train': 20.0, 'bccd/ViT-S/seed0/up-50/prune': 3.0}
    assert minutes_table(minutes).texts() == [
        ['dense, train', '7.0', '20.0'],
        ['up-50, prune', '3.0', ''],
        ['all seeds together', '17.0', '20.0'],
    ]
    assert minutes_table({}) is None


def test_figures_of_a_classifier(tmp_path):
    (plan,) = plans_of(studies_of(['cifar10'], ['PVTv2-B0']), (1,), 'cpu', tmp_path)
    for key, values in (('compensated-distilled', [86.0, 88.0]), ('vanilla', [70.0, 80.0]), ('compensated', [81.0])):
        write(plan.folder / f'up-50/compared/{key}/seed1/record.json', {'top1': values})
    content = {'one_shot': {'compensated': {'top1': 84.0}}}
    content |= {'dense': {'top1': 89.0, 'macs': 4e7, 'params': 3e6}, 'target': {'macs': 2e7, 'params': 2e6}}
    write(plan.folder / 'up-50/compared/compare.json', content)
    found = StudyFound.of([plan])
    scores = {name: own.score for name, own in found.by_seed[1].items() if own.score}
    assert scores == {'dense': {'top-1': 89.0}, 'up-50': {'top-1': 88.0}, 'vanilla-50': {'top-1': 80.0}}
    assert found.difference('up-50', 'vanilla-50', 'top-1')['mean'] == pytest.approx(8.0)
    assert found.by_seed[1]['vanilla-50'].curve == [70.0, 80.0]
    assert found.by_seed[1]['up-50-alone'].curve == [81.0, None]  # still training


def test_the_dense_classifier_that_was_trained_on_is_read_from_its_log(tmp_path):
    (plan,) = plans_of(studies_of(['cifar10'], ['PVTv2-B0']), (1,), 'cpu', tmp_path)
    folder = plan.folder / 'dense-on/train'
    (folder / '1/vis_data').mkdir(parents=True)
    (folder / '1/vis_data/scalars.json').write_text('{"loss": 1.0, "step": 7}\n{"accuracy/top1": 81.5, "step": 2}\n')
    assert StudyFound.of([plan]).values('dense-on', 'top-1') == {}  # not finished
    (folder / 'epoch_2.pth').touch()
    assert StudyFound.of([plan]).values('dense-on', 'top-1') == {1: 81.5}
