"""Tables, files and the gate."""

from __future__ import annotations

import csv
import json

import pytest
from matplotlib.image import imread

from upvit_mm.compare.consistency_gate import ConsistencyGate
from upvit_mm.compare.token_dropping import drop_tokens
from upvit_mm.compare.token_figures import draw_contrast, draw_queries, draw_stages
from upvit_mm.compare.token_report import write_contrast, write_pair
from upvit_mm.consistency import compare, contrast

NAN = float('nan')
RESULTS = {
    '64x64': {
        'stage0': {'grid': [16, 16], 'tokens': 1536, 'cka': 0.99, 'relation': 0.7},
        'stage3': {'grid': [2, 2], 'tokens': 24, 'cka': 0.91, 'relation': NAN},
    },
    '32x32': {
        'stage0': {'grid': [8, 8], 'tokens': 384, 'cka': 0.5, 'relation': 0.6},
        'stage3': {'grid': [1, 1], 'tokens': 6, 'cka': 0.92, 'relation': 0.9},
    },
}


def test_the_gate():
    assert ConsistencyGate({'cka': 0.5}).failures(RESULTS) == []
    record = ConsistencyGate({'cka': 0.9}, last_stage_only=True).record(RESULTS)
    assert (record['passed'], record['verdict']) == (True, 'PASS: cka >= 0.9 in the last stage at every size')
    record = ConsistencyGate({'cka': 0.9}).record(RESULTS)
    assert not record['passed']
    assert record['verdict'] == (
        'FAIL: cka >= 0.9 in every stage at every size; cka = 0.5000 < 0.9 in stage0 at 32x32 (1 below their threshold '
        'in all)'
    )
    found = ConsistencyGate({'relation': 0.65, 'cka': 0.9}).failures(RESULTS)
    assert found == [
        'relation = not defined < 0.65 in stage3 at 64x64',
        'cka = 0.5000 < 0.9 in stage0 at 32x32',
        'relation = 0.6000 < 0.65 in stage0 at 32x32',
    ]
    for wrong in ({'kca': 0.9}, {'kept_error': 0.1}, {'cka': 'high'}):
        with pytest.raises(ValueError, match=r'must be a number for one of cka, .*r2\.'):
            ConsistencyGate(wrong)


def test_comparison_files(pair, images, tmp_path):
    results = compare(pair.dense, pair.pruned, images, [(64, 96)], pair.plan)
    results['64x96'][next(iter(results['64x96']))]['r2'] = NAN
    record = {'arch': pair.dense.arch.to_dict(), 'config': 'c.py', 'checkpoint': 'c.pth', 'sha256': 64 * 'a'}
    content = {'dense': record, 'pruned': record, 'settings': {'images': 6}, 'results': results}
    content['gate'] = ConsistencyGate({'cka': 2.0}).record(results)
    figures = {
        'stages.png': draw_stages(results),
        'queries.png': draw_queries({'dense': pair.dense, 'pruned': pair.pruned}, images, (64, 96), 2),
    }
    write_pair(tmp_path, content, figures)
    written = json.loads((tmp_path / 'consistency.json').read_text())
    label = next(iter(results['64x96']))
    assert written['results']['64x96'][label]['r2'] is None
    assert written['results']['64x96'][label]['cka'] == results['64x96'][label]['cka']
    text = (tmp_path / 'consistency.md').read_text()
    for part in ('## 64x96', '| stage | grid (both) | CKA |', 'not defined', '![queries](queries.png)', 'images 6'):
        assert part in text
    assert '## Gate\n\nFAIL: cka >= 2 in every stage' in text
    for name in figures:
        assert imread(tmp_path / name).std() > 0
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == sorted(
        ['consistency.json', 'consistency.md', *figures]
    )


def test_differences_to_the_first_row(tmp_path):
    """Bold where they are established; with one seed no interval."""
    stages = {'a': {'stage0': {'grid': [4, 4], 'tokens': 16, 'cka': 0.9}}, 'b': {}, 'c': {}}
    stages['b'] = stages['c'] = stages['a']
    found = {
        'b': {'cka': {'mean': -0.31, 'interval': [-0.437, -0.183], 'established': True}},
        'c': {
            'cka': {'mean': 0.01, 'interval': [-0.1, 0.12], 'established': False},
            'r2': {'mean': 0.2, 'interval': None, 'established': None},
            'relation': {'mean': None, 'interval': None, 'established': None},
        },
    }
    over = {'to': 'a', 'how': 'How.', 'rows': {title: {'32x32': {'s0': {}, 's1': own}} for title, own in found.items()}}
    write_contrast(tmp_path, {'results': {n: {'32x32': s} for n, s in stages.items()}, 'over': over}, {})
    lines = (tmp_path / 'contrast.md').read_text().splitlines()
    start = lines.index('## Over a, s1, 32x32')
    assert lines[start + 2 : start + 8] == [
        '| network | CKA | relation | R2 |',
        '|---|---:|---:|---:|',
        '| b | **-0.3100 [-0.4370, -0.1830]** | - | - |',
        '| c | +0.0100 [-0.1000, +0.1200] | - | +0.2000 (one seed) |',
        '',
        'How.',
    ]
    assert json.loads((tmp_path / 'contrast.json').read_text())['over'] == over


def test_contrast_files(pair, images, tmp_path):
    sizes = [(64, 64), (64, 96)]
    variants = {'UP': pair.pruned} | {
        f'dropping, {fill}': drop_tokens(pair.dense, 0.5, fill) for fill in ('zeros', 'last')
    }
    results = contrast(pair.dense, variants, images, sizes, {'UP': pair.plan})
    macs = {name: {f'{h}x{w}': network.macs((h, w)) for h, w in sizes} for name, network in variants.items()}
    write_contrast(tmp_path, {'results': results, 'macs': macs}, {'contrast.png': draw_contrast(results)})
    rows = list(csv.DictReader((tmp_path / 'contrast.csv').open()))
    assert len(rows) == 3 * 2 * 4
    assert float(rows[0]['cka']) == next(iter(results['UP']['64x64'].values()))['cka']
    assert int(rows[0]['macs']) == macs['UP']['64x64']
    assert rows[-1]['kept_error'] == ''
    text = (tmp_path / 'contrast.md').read_text()
    assert '## CKA, 64x96' in text
    assert '| dropping, last | 0.0' in text
    assert json.loads((tmp_path / 'contrast.json').read_text())['results'].keys() == variants.keys()
    assert imread(tmp_path / 'contrast.png').std() > 0
