"""Latency runs: their arithmetic, their record, and which earlier runs they compare with. No test looks at a clock."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from upvit_mm.arch import ArchSpec
from upvit_mm.benchmark import latency
from upvit_mm.benchmark.latency import LatencySettings, backbones, detectors, measure_latency, tables_of
from upvit_mm.stopwatch import Timing

ROOT = Path(__file__).parents[2]
RETINANET = str(ROOT / 'configs/demo/retinanet_up-pvtv2-micro_fpn_digits.py')
SIZES = [(64, 64), (64, 96)]


@pytest.fixture(autouse=True)
def _threads():
    """A run sets those of the process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Probe(nn.Module):
    """Notes what it is run with."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append((tuple(x.shape), x.is_contiguous(memory_format=torch.channels_last), (x @ x.mT).dtype))
        return x


@pytest.fixture
def archs(tiny_arch, tmp_path) -> list[str]:
    """Files of a tiny DeiT and a tiny PVTv2."""
    return [str(ArchSpec.from_dict(tiny_arch(f)).save_json(tmp_path / f'{f}.json')) for f in ('deit', 'pvtv2')]


@pytest.fixture
def clock(monkeypatch):
    """``clock(**medians)``: seconds that each network takes from now on."""

    def set_to(**medians):
        timings = {name: Timing(m, 0.9 * m, 1.1 * m, 5) for name, m in medians.items()}
        monkeypatch.setattr(latency, 'time_alternating', lambda *args: timings)

    return set_to


def probes(*names: str) -> dict:
    return {'backbone': {name: Probe() for name in names}}


def test_a_whole_run(archs):
    threads = torch.get_num_threads()
    record = measure_latency(backbones(archs), LatencySettings(SIZES, [1, 3], threads=threads), repeats=2)
    assert json.loads(json.dumps(record)) == record
    assert record.keys() == {'settings', 'machine', 'rows'}
    assert record['machine'].keys() == {'device', 'cores', 'torch'}
    expected = {'sizes': [[64, 64], [64, 96]], 'batches': [1, 3], 'device': 'cpu', 'threads': threads}
    assert record['settings'] == expected | dict.fromkeys(('amp', 'channels_last', 'compile'), False)
    places = [(row['size'], row['batch'], row['network']) for row in record['rows']]
    assert places == [([64, width], batch, name) for width in (64, 96) for batch in (1, 3) for name in archs]
    for first, second in zip(record['rows'][::2], record['rows'][1::2]):
        assert first['ratio'] == 1
        for row in (first, second):
            assert row['part'] == 'backbone'
            assert row['seconds']['runs'] == 2


def test_arithmetic_against_an_earlier_run(clock, tmp_path):
    settings, path = LatencySettings(SIZES[:1], [4]), tmp_path / 'run.json'
    clock(dense=2.0, sliced=0.5)
    earlier = measure_latency(probes('dense', 'sliced'), settings, 5)
    assert [(r['ratio'], r['images_per_second']) for r in earlier['rows']] == [(1.0, 2.0), (0.25, 8.0)]
    path.write_text(json.dumps(earlier))
    clock(sliced=0.25, other=1.0)
    record = measure_latency(probes('sliced', 'other'), settings, 9, path)
    assert [(r['ratio'], r.get('ratio_to_earlier')) for r in record['rows']] == [(1.0, 0.5), (4.0, None)]
    ((title, header, rows),) = tables_of(record)
    assert title == 'backbone, 4 x 64x64'
    assert header == ['network', 'median s', 'quartiles s', 'images/s', 'over first', 'over earlier']
    assert rows == [
        ['sliced', '0.25', '0.225-0.275', '16.00', '1.00', '0.50'],
        ['other', '1', '0.9-1.1', '4.00', '4.00', ''],
    ]
    assert tables_of(earlier)[0][1] == header[:-1]


@pytest.mark.parametrize(
    ('changes', 'said'),
    [
        ({'settings': {'threads': 7}}, r'threads = 7 \(now 1\)'),
        ({'settings': {'sizes': [[64, 96]]}}, r'sizes = \[\[64, 96\]\] \(now \[\[64, 64\]\]\)'),
        ({'settings': {'amp': True, 'compile': True}}, r'amp = True \(now False\), compile = True \(now False\)'),
        ({'machine': {'device': 'Abacus'}}, "device = 'Abacus'"),
        ({'machine': {'torch': '1.0'}}, "torch = '1.0'"),
        ({'settings': {'batches': None}}, r'batches = None \(now \[1\]\)'),
    ],
)
def test_another_earlier_run_is_refused(clock, tmp_path, changes, said):
    settings, path = LatencySettings(SIZES[:1]), tmp_path / 'run.json'
    clock(net=1.0)
    record = measure_latency(probes('net'), settings, 5)
    for key, values in changes.items():
        record[key] |= values
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=rf'was measured differently: .*{said}.*Times can be compared only'):
        measure_latency(probes('net'), settings, 5, path)


def test_no_run_at_all_is_refused(clock, tmp_path):
    path = tmp_path / 'run.json'
    clock(net=1.0)
    record = measure_latency(probes('net'), LatencySettings(SIZES[:1]), 5)
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match='has none of the networks; it has net'):
        measure_latency(probes('other'), LatencySettings(SIZES[:1]), 5, path)
    for text in ('{', '[]', '{"rows": [{}]}', '{"rows": []}'):
        path.write_text(text)
        with pytest.raises(ValueError, match='is not a record of a latency run'):
            measure_latency(probes('net'), LatencySettings(SIZES[:1]), 5, path)


def test_settings_reach_the_network():
    networks = probes('a', 'b')
    measure_latency(networks, LatencySettings([(64, 96)], [2, 3], channels_last=True, amp=True), repeats=2)
    measure_latency(networks, LatencySettings([(64, 64)]), repeats=2)
    runs = 2 + 2  # two warm-ups
    assert networks['backbone']['a'].seen == networks['backbone']['b'].seen
    assert networks['backbone']['a'].seen == [
        *[((2, 3, 64, 96), True, torch.bfloat16)] * runs,
        *[((3, 3, 64, 96), True, torch.bfloat16)] * runs,
        *[((1, 3, 64, 64), False, torch.float32)] * runs,
    ]


def test_compiled_for_each_shape(monkeypatch):
    compiled = []

    def compile(model, **options):
        compiled.append((model, options))
        return model

    monkeypatch.setattr(torch, 'compile', compile)
    networks = probes('a', 'b')
    measure_latency(networks, LatencySettings(SIZES, compile=True), repeats=2)
    assert compiled[0][0] is nn.functional.gelu  # the trial
    a, b = networks['backbone'].values()
    assert compiled[1:] == [(model, {'dynamic': False}) for _ in SIZES for model in (a, b)]

    def fail(model, **options):
        raise RuntimeError('No working C++ compiler found\nand more')

    monkeypatch.setattr(torch, 'compile', fail)
    with pytest.raises(ValueError, match=r'compile: .* here: No working C\+\+ compiler found\. It needs'):
        LatencySettings(SIZES, compile=True)


def test_bad_settings(monkeypatch, archs):
    with pytest.raises(ValueError, match='batch or threads = 0'):
        LatencySettings(SIZES, [1, 0])
    with pytest.raises(ValueError, match='batch or threads = -1'):
        LatencySettings(SIZES, threads=-1)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(ValueError, match=r"device = 'cuda': torch .* sees no GPU"):
        LatencySettings(SIZES, device='cuda')
    with pytest.raises(ValueError, match=r'deit\.json. is given 2 times'):
        backbones([archs[0], *archs])


# --------------------------------------------------------------------- detectors


def test_detectors(scope, tmp_path):
    scope('mmdet')
    (random,) = detectors([[RETINANET]])['predict'].values()
    state = {k: v + 1 for k, v in random.detector.state_dict().items()}
    path = tmp_path / 'detector.pth'
    torch.save({'state_dict': state}, path)
    networks = detectors([[RETINANET], [RETINANET, str(path)]])
    names = [RETINANET, f'{RETINANET} {path}']
    assert [(part, list(models)) for part, models in networks.items()] == [('extract_feat', names), ('predict', names)]
    loaded = networks['predict'][names[1]].detector
    assert loaded is networks['extract_feat'][names[1]].detector
    assert all(torch.equal(v, state[k]) for k, v in loaded.state_dict().items())

    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        maps = networks['extract_feat'][RETINANET](x)
        expected = networks['predict'][RETINANET].detector.extract_feat(x)
    assert [tuple(m.shape) for m in maps] == [(2, 64, 8, 8), (2, 64, 4, 4), (2, 64, 2, 2)]
    assert all(torch.equal(a, b) for a, b in zip(maps, expected))

    record = measure_latency(
        {part: {'net': models[RETINANET]} for part, models in networks.items()}, LatencySettings(SIZES), 2
    )
    assert [(row['part'], row['size'][1]) for row in record['rows']] == [
        ('extract_feat', 64),
        ('extract_feat', 96),
        ('predict', 64),
        ('predict', 96),
    ]
    with pytest.raises(ValueError, match='amp: on a CPU'):
        measure_latency(networks, LatencySettings(SIZES, amp=True), 2)

    del state['bbox_head.retina_cls.bias']
    torch.save({'state_dict': state}, path)
    with pytest.raises(ValueError, match=rf'checkpoint={path}.*retina_cls\.bias is missing'):
        detectors([[RETINANET, str(path)]])


def test_classifiers_are_none():
    with pytest.raises(ValueError, match=r'is not a detector config .*; for a backbone use --arch'):
        detectors([[str(ROOT / 'configs/demo/up-pvtv2-micro_digits.py')]])


# -------------------------------------------------------------------------- tool


def test_tool(run_python, archs, tmp_path):
    costs, run = tmp_path / 'costs.json', tmp_path / 'run.json'
    options = ['--sizes', '64', '--repeats', '2', '--threads', '1', '--save', str(run)]
    commands = [
        ['complexity', '--arch', archs[1], '--sizes', '64x96', '--num-classes', '7', '--save', str(costs)],
        ['latency', '--arch', *archs, *options],
        ['latency', '--arch', *archs, *options, '--against', str(run)],
    ]
    said = run_python(f"""
import runpy, sys
for words in {commands!r}:
    sys.argv = ['tools/benchmark.py', *words]
    runpy.run_path(sys.argv[0], run_name='__main__')
sys.argv += ['--amp']
try:
    runpy.run_path(sys.argv[0], run_name='__main__')
except SystemExit as end:
    print(end)
""")
    counted = json.loads(costs.read_text())
    assert counted['command'].startswith('python tools/benchmark.py complexity --arch')
    assert counted['num_classes'] == 7
    assert list(counted['sizes']) == ['64x96']
    assert f'{counted["sizes"]["64x96"]["counted"]["macs"] / 1e6:.3f}' in said
    rows = json.loads(run.read_text())['rows']
    assert [row['network'] for row in rows] == archs
    assert all('ratio_to_earlier' in row for row in rows)
    assert said.splitlines()[-1].startswith('error: --against = ')
    assert 'amp = False (now True)' in said
