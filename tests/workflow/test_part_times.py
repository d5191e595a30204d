"""The parts that are timed make the whole network; their times are kept; a stopped run goes on. No clock is read."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from torch import nn

from upvit_mm.arch import ArchSpec
from upvit_mm.arch.size import Windows
from upvit_mm.benchmark.complexity import traced_macs
from upvit_mm.models import build_backbone
from upvit_mm.pruning.latency_table import ATTN, ENDS, Part, Point, parts_of
from upvit_mm.workflow import part_times
from upvit_mm.workflow.part_times import ROUNDS, Bench, PartTimer, side_by_side, time_parts

SIZE = (64, 96)


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv('UPVIT_MM_CACHE', str(tmp_path))
    return tmp_path / 'latency'


@pytest.fixture
def arch(stock_arch) -> ArchSpec:
    return ArchSpec.from_dict(stock_arch('deit', depths=[1]))


@pytest.fixture
def timed(monkeypatch) -> list[tuple[Part, Point]]:
    """What was timed; a part takes as many microseconds as the product of its widths."""
    seen = []

    def time(self, part: Part, point: Point) -> float:
        seen.append((part, point))
        return 1e-6 * point[0] * point[1]

    monkeypatch.setattr(PartTimer, 'time', time)
    return seen


@pytest.mark.parametrize(('family', 'side'), [('deit', 3), ('dinov2', 3), ('dinov3', 0), ('pvtv2', 0)])
def test_parts_at_dense_widths_are_the_whole_network(stock_arch, family, side):
    """By multiply-accumulates, windows and registers included."""
    arch, windows = ArchSpec.from_dict(stock_arch(family)), Windows(side, (0,) if side else None)
    timer = PartTimer(arch, Bench(SIZE, windows=windows))
    macs = 0
    for part in parts_of(arch, windows):
        widths = {ATTN: arch.qk_dims, ENDS: [[w] for w in arch.embed_dims]}.get(part.kind, arch.mlp_hidden_dims)
        width = widths[part.stage][0]
        point = (part.rows[-1], width, width, part.heads) if part.kind == ATTN else (part.rows[-1], width)
        assert point in part.points
        run = timer._prepare(part, point)
        with torch.inference_mode():
            run()
        sides = windows.sizes(arch.depths[part.stage])
        count = {ENDS: 1, ATTN: sides.count(part.window)}.get(part.kind, len(sides))
        macs += count * _macs(run)
    assert macs == traced_macs(build_backbone(arch, **windows.settings), torch.zeros(1, 3, *SIZE))


def _macs(run: partial) -> int:
    module = getattr(run.func, '__self__', None)
    x = next(a for a in run.args if isinstance(a, torch.Tensor))

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = module or run.args[0]

        def forward(self, x):
            if module is None:
                return run.func(self.part, run.args[1], x)
            return getattr(self.part, run.func.__name__)(x, run.args[1])

    return traced_macs(Whole(), x)


def test_the_ends_of_every_grid_run(stock_arch, tiny_arch):
    """Of pruned networks too, whose blocks differ; whole heads can go where they are equal."""
    for arch, by_heads in ((tiny_arch('dinov3'), False), (tiny_arch('pvtv2'), False), (stock_arch('deit'), True)):
        arch = ArchSpec.from_dict(arch)
        timer = PartTimer(arch, Bench((32, 32), precision='bf16', batch=2))
        state = torch.get_rng_state()
        with torch.inference_mode():
            for part in parts_of(arch, by_heads=by_heads):
                out = [timer._prepare(part, point)() for point in (part.points[0], part.points[-1])]
                assert {o.dtype for o in out} == {torch.bfloat16}
                assert all(o.isfinite().all() and o.shape[0] == 2 for o in out)
        assert torch.equal(torch.get_rng_state(), state)  # what follows in a job must not depend on it


def test_a_second_run_measures_nothing_and_a_stopped_one_goes_on(arch, timed, folder, monkeypatch, caplog):
    table = time_parts(arch, Bench(SIZE))
    points = sum(len(part.points) for part in table.parts)
    assert len(timed) == ROUNDS * points
    assert len(set(timed)) == points
    assert timed[:points] != timed[points : 2 * points]  # an order of its own in every round
    assert table.seconds[0] == tuple(1e-6 * a * b for a, b in table.parts[0].points)
    timed.clear()
    assert time_parts(arch, Bench(SIZE)) == table
    assert not timed

    (file,) = folder.iterdir()
    content = json.loads(file.read_text())
    del content['sha256']
    content['rounds'] = content['rounds'][:3]
    file.write_text(json.dumps(content))
    assert time_parts(arch, Bench(SIZE)) == table
    assert len(timed) == (ROUNDS - 3) * points

    timed.clear()
    file.write_text(file.read_text().replace('"rounds": [[', '"rounds": [[7'))
    assert time_parts(arch, Bench(SIZE)) == table
    assert len(timed) == ROUNDS * points
    assert 'cannot be used' in caplog.text


def test_a_kill_loses_one_round(arch, timed, folder, monkeypatch):
    whole = PartTimer.round
    monkeypatch.setattr(PartTimer, 'round', lambda self, todo, n: whole(self, todo, n) if n < 2 else exit('killed'))
    with pytest.raises(SystemExit):
        time_parts(arch, Bench(SIZE))
    monkeypatch.setattr(PartTimer, 'round', whole)
    timed.clear()
    time_parts(arch, Bench(SIZE))
    assert len(timed) == (ROUNDS - 2) * len(set(timed))


def test_what_changes_times_has_its_own_table(arch, timed, folder, monkeypatch):
    benches = [Bench(SIZE), Bench((64, 64)), Bench(SIZE, precision='bf16'), Bench(SIZE, batch=2)]
    for bench in (*benches, Bench(SIZE, windows=Windows(2))):
        time_parts(arch, bench)
    time_parts(arch.with_widths({'mlp_hidden_dims': 64}), Bench(SIZE))
    time_parts(arch, Bench(SIZE), by_heads=True)
    for name, value in (('device_name', lambda device: 'another CPU'), ('__version__', '99')):
        monkeypatch.setattr(part_times, name, value)
        time_parts(arch, Bench(SIZE))
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 3)
    time_parts(arch, Bench(SIZE))
    assert len(list(folder.iterdir())) == 10
    time_parts(arch.with_widths({}), Bench(SIZE))  # its name does not matter
    assert len(list(folder.iterdir())) == 10


def test_a_short_part_runs_several_times_in_a_measurement(arch, monkeypatch):
    clock = iter(range(10**9))
    monkeypatch.setattr(part_times, 'seconds', lambda work, clock_: (work(), next(clock), 1e-3)[2])
    timer, ran = PartTimer(arch, Bench(SIZE)), []
    monkeypatch.setattr(timer, '_prepare', lambda part, point: lambda: ran.append(point))
    part = parts_of(arch)[0]
    assert timer.time(part, part.points[0]) == 1e-3 / 5
    assert len(ran) == 1 + 1 + 5  # warm-up, the first measurement, five runs of 1 ms
    assert timer.time(part, part.points[0]) == 1e-3 / 5
    assert len(ran) == 12


def test_whole_networks_run_side_by_side(arch, monkeypatch):
    order = []
    monkeypatch.setattr(part_times, 'forward_step', lambda net, x: order.append(net.arch.embed_dims[0]))
    monkeypatch.setattr(part_times, 'seconds', lambda work, clock: work() or 2.0)  # 5 runs of each are enough then
    times = side_by_side({'dense': arch, 'pruned': arch.with_widths({'embed_dims': [24]})}, Bench(SIZE))
    assert times['pruned'].runs == 5
    assert order.count(24) == order.count(48) == 2 + 2 + 5
    assert order[4:10] == [24, 48, 48, 24, 24, 48] or order[4:10] == [48, 24, 24, 48, 48, 24]


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(precision='fp16'), r"latency_precision = 'fp16': .* \(cpu\) takes fp32 or bf16"),
        (dict(device='cuda'), r"latency_device = 'cuda': torch .* sees no GPU on this machine; use cpu"),
    ],
)
def test_what_the_machine_lacks(settings, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(ValueError, match=message):
        Bench(SIZE, **settings)
