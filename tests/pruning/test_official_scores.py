"""The authors' published scores, read as ours."""

from __future__ import annotations

import logging
import re
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from upvit_mm.arch import ArchSpec, get_arch
from upvit_mm.files import sha256_of
from upvit_mm.pruning import plan_for_target, prunable_dims
from upvit_mm.pruning.hybrid import tied
from upvit_mm.pruning.knobs import Grain, knobs_of
from upvit_mm.pruning.official_scores import read_official_scores
from upvit_mm.pruning.score_file import load_scores

TOOL = Path(__file__).parents[2] / 'tools/import_official_scores.py'
SMALL = dict(family='deit', name='small', embed_dims=[6], depths=[2], num_heads=3, mlp_hidden_dims=8, img_size=64)
SIZES = {'neck': 'embed_dims', 'attn': 'qk_dims', 'ffn': 'mlp_hidden_dims'}


@pytest.fixture
def arch() -> ArchSpec:
    return ArchSpec.from_dict(SMALL)


def file_name(arch: ArchSpec, part: str, block: int | None = None, k: int = 5) -> str:
    size = getattr(arch, SIZES[part])[0]
    size = size if block is None else size[block]
    return f'Deit_base_{arch.depths[0]}_{part}_{size}_kl_{"" if block is None else f"{block}_"}{k}k.txt'


def names(arch: ArchSpec) -> list[tuple[str, int | None]]:
    return [('neck', None), *((part, j) for j in range(arch.depths[0]) for part in ('attn', 'ffn'))]


def write_folder(folder: Path, arch: ArchSpec, k: int = 5, seed: int = 0) -> dict[str, list[str]]:
    """Files as the authors' scripts write them: ``str`` of float32 numbers; returns the lines by file name.

    Sums from 1e-6 to 1, so that many have an exponent; one in 20 is a tiny negative, one in 4 equals another.
    """
    random = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    lines = {}
    for part, block in names(arch):
        name = file_name(arch, part, block, k)
        size = int(re.search(r'_(\d+)_kl', name)[1])
        sums = 10 ** random.uniform(-6, 0, size)
        sums[random.random(size) < 0.05] *= -1e-3
        repeated = random.random(size) < 0.25
        sums[repeated] = random.choice(sums[:5], repeated.sum())
        lines[name] = [str(float(number)) for number in sums.astype(np.float32)]
        (folder / name).write_text('\n'.join(lines[name]) + '\n')
    return lines


@pytest.fixture
def folder(arch, tmp_path) -> Path:
    write_folder(tmp_path / 'scores', arch)
    return tmp_path / 'scores'


# ------------------------------------------------------------------ reading


@pytest.mark.parametrize(('k', 'images'), [(5, 5000), (2, 2000)])
def test_scores_are_means_over_the_proxy_images(arch, tmp_path, k, images):
    lines = write_folder(tmp_path, arch, k)
    (tmp_path / file_name(arch, 'ffn', 1, k)).write_text('3.2e-05\n-1.5e-06\n2.5\n1250.0\n0.0\n0.75\n-0.001\n1e-07\n')
    scores = read_official_scores(tmp_path, arch)
    assert scores.keys() == prunable_dims(arch).keys()
    assert all(values.dtype == torch.float64 for values in scores.values())
    expected = [number / images for number in (3.2e-05, -1.5e-06, 2.5, 1250, 0, 0.75, -0.001, 1e-07)]
    assert scores['stages.0.blocks.1.mlp_hidden'].tolist() == expected
    for part, block, kinds in (('neck', None, ['embed']), ('attn', 0, ['qk', 'v']), ('attn', 1, ['qk', 'v'])):
        for kind in kinds:
            dim = f'stages.0.{kind}' if block is None else f'stages.0.blocks.{block}.{kind}'
            assert scores[dim].tolist() == [float(x) / images for x in lines[file_name(arch, part, block, k)]]


def test_qk_and_v_are_tensors_of_their_own(arch, folder):
    scores = read_official_scores(folder, arch)
    before = scores['stages.0.blocks.0.v'].clone()
    scores['stages.0.blocks.0.qk'] += 1
    assert torch.equal(scores['stages.0.blocks.0.v'], before)


def test_block_10_is_not_block_1(tmp_path):
    arch = ArchSpec.from_dict(SMALL | dict(depths=[12]))
    lines = write_folder(tmp_path, arch)
    scores = read_official_scores(tmp_path, arch)
    for block in (1, 2, 10, 11):
        expected = [float(line) / 5000 for line in lines[file_name(arch, 'ffn', block)]]
        assert scores[f'stages.0.blocks.{block}.mlp_hidden'].tolist() == expected


def test_rankings_and_other_files_are_left_alone(arch, folder):
    before = read_official_scores(folder, arch)
    for name in (
        'Deit_base_2_attn_6_kl_1_5k_importance_rank_multihead3.txt',
        'Deit_base_2_ffn_8_kl_0_5k_importance_rank_768.txt',
        'Deit_base_2_neck_6_kl_5k_192.txt',
        'Deit_base_2_attn_6_kl_5k.txt',  # of no block
        'README.md',
    ):
        (folder / name).write_text('576\n')
    after = read_official_scores(folder, arch)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_official_parsing_misreads_exponents_and_signs(arch, folder, caplog):
    """The authors' script takes the last group of digits of a line; every other file here has no such number."""
    for part, block in names(arch):
        path = folder / file_name(arch, part, block)
        path.write_text('0.5\n' * len(path.read_text().split()))
    (folder / file_name(arch, 'ffn', 0)).write_text(
        '3.2e-05\n-1.7913766896526795e-06\n-0.25\n2785.124267578125\n0.0001\n1e-07\n1.5e+16\n0.0\n'
    )
    with caplog.at_level(logging.WARNING, logger='upvit_mm'):
        right = read_official_scores(folder, arch)
        assert not caplog.records
        wrong = read_official_scores(folder, arch, official_parsing=True)
    assert (wrong['stages.0.blocks.0.mlp_hidden'] * 5000).tolist() == pytest.approx(
        [5, 6, 0.25, 2785.124267578125, 0.0001, 7, 16, 0], rel=1e-15
    )
    assert 'official_parsing: 5 of 34 scores' in caplog.text  # 6 + 2 * (6 + 8) numbers
    same = [name for name in right if torch.equal(right[name], wrong[name])]
    assert same == [name for name in right if name != 'stages.0.blocks.0.mlp_hidden']


# ------------------------------------------------------------------ planning


def kept_by_the_ranking(lines: list[str], runs: int, removed: int, number=float) -> list[int]:
    """In each run, what is left after the first ``removed`` of a stable ascending argsort."""
    values = np.array([number(line) for line in lines]).reshape(runs, -1)
    kept = [np.argsort(run, kind='stable')[removed:] + k * values.shape[1] for k, run in enumerate(values)]
    return sorted(np.concatenate(kept).tolist())


def last_digits(line: str) -> float:
    return float(re.findall('[0-9.]+', line)[-1])


@pytest.mark.parametrize('official_parsing', [False, True])
def test_regroup_is_an_argsort_of_the_published_numbers(tmp_path, official_parsing):
    source, target = get_arch('deit-base'), get_arch('deit-tiny')
    lines = write_folder(tmp_path, source, seed=1)
    scores = read_official_scores(tmp_path, source, official_parsing)
    kept = plan_for_target(source, target, scores, head_policy='regroup', tie_qkv=True).kept
    number = last_digits if official_parsing else float
    seen = 0
    for part, block in names(source):
        text = lines[file_name(source, part, block)]
        runs, removed, kinds = {
            'neck': (1, 576, ['embed']),
            'attn': (3, 192, ['qk', 'v']),
            'ffn': (1, 2304, ['mlp_hidden']),
        }[part]
        expected = kept_by_the_ranking(text, runs, removed, number)
        assert len(expected) == len(text) // 4
        for kind in kinds:
            dim = f'stages.0.{kind}' if block is None else f'stages.0.blocks.{block}.{kind}'
            assert kept[dim].tolist() == expected
            seen += 1
    assert seen == len(kept) == 37


@pytest.mark.parametrize('grain', [Grain(round_to=1, tie_qkv=True), Grain(round_to=1, head_policy='select')])
def test_a_measurement_of_qk_and_v_counts_once_in_a_budget(arch, folder, grain):
    """Counted twice, attention would seem more important than it is, and the budget would take from others."""
    scores = read_official_scores(folder, arch)
    once = {name: values / 2 if name.endswith(('qk', 'v')) else values for name, values in scores.items()}
    once |= {name: values.nextafter(torch.tensor(1.0)) for name, values in once.items() if name.endswith('v')}
    for knob, other in zip(knobs_of(arch, grain, scores), knobs_of(arch, grain, once), strict=True):
        assert knob.lost == pytest.approx(other.lost, rel=1e-12)
    attention = [knob for knob in knobs_of(arch, grain, scores) if knob.dims[0].endswith('qk')]
    assert [knob.dims for knob in attention] == [(f'stages.0.blocks.{j}.qk', f'stages.0.blocks.{j}.v') for j in (0, 1)]
    assert all(knob.lost[0] > 0 == knob.lost[-1] for knob in attention)


def test_a_measurement_of_qk_and_v_counts_once_where_both_are_tied():
    scores = {'b.qk': torch.tensor([1.0, 2.0]), 'b.v': torch.tensor([1.0, 2.0])}
    assert tied(scores)['b.qk'].tolist() == tied(scores)['b.v'].tolist() == [1, 2]
    assert tied(scores | {'b.v': torch.tensor([1.0, 3.0])})['b.qk'].tolist() == [2, 5]


def test_synthetic_files_are_as_hard_as_the_published_ones(tmp_path):
    """The test above would say little if no tie lay across a cut, or no number had an exponent."""
    arch = get_arch('deit-base')
    lines = write_folder(tmp_path, arch, seed=1)
    numbers = [line for file in lines.values() for line in file]
    assert len(lines) == 25
    assert len(numbers) == 768 + 12 * (768 + 3072)
    assert 0.2 < sum('e-' in line for line in numbers) / len(numbers) < 0.5
    assert 0.02 < sum(line.startswith('-') for line in numbers) / len(numbers) < 0.25
    runs = [np.array(lines[file_name(arch, 'attn', j)], dtype=float).reshape(3, 256) for j in range(12)]
    tied = [np.sort(run)[191] == np.sort(run)[192] for block in runs for run in block]
    assert sum(tied) >= 3


def test_official_parsing_keeps_the_least_important_channels(tmp_path):
    arch = get_arch('deit-base')
    write_folder(tmp_path, arch, seed=1)
    name = 'stages.0.blocks.0.mlp_hidden'
    right, wrong = (read_official_scores(tmp_path, arch, official) for official in (False, True))
    worst = set(right[name].argsort(stable=True)[:500].tolist())
    kept = [
        worst & set(plan_for_target(arch, get_arch('deit-tiny'), scores, 'regroup', tie_qkv=True).kept[name].tolist())
        for scores in (right, wrong)
    ]
    assert len(kept[0]) == 0
    assert len(kept[1]) > 300


# ------------------------------------------------------------------ mistakes


def test_missing_folder_and_files(arch, folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder '.*nowhere' does not exist or is no folder; give the folder"):
        read_official_scores(tmp_path / 'nowhere', arch)
    (folder / file_name(arch, 'attn', 1)).unlink()
    with pytest.raises(FileNotFoundError, match=r"scores' lacks 1 of 5 files: attn of block 1; give"):
        read_official_scores(folder, arch)
    (folder / file_name(arch, 'neck')).unlink()
    with pytest.raises(FileNotFoundError, match=r"scores' lacks 2 of 5 files: neck, attn of block 1; give"):
        read_official_scores(folder, arch)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(FileNotFoundError, match=r'lacks 25 of 25 files: neck, attn of block 0, .*, \.\.\.; .*kl5k'):
        read_official_scores(tmp_path / 'empty', get_arch('deit-base'))


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('0.1\n' * 7, r"ffn_8_kl_1_5k.txt' has 7 numbers: stages.0.blocks.1.mlp_hidden has 8 channels"),
        ('0.1\n' * 9, r"ffn_8_kl_1_5k.txt' has 9 numbers: stages.0.blocks.1.mlp_hidden has 8 channels"),
        ('', r"ffn_8_kl_1_5k.txt' has 0 numbers"),
        ('0.1\n0.2\nKL 0.3\n' + '0.1\n' * 5, r"line 3 of '.*ffn_8_kl_1_5k.txt' = 'KL 0.3': must be one number"),
        ('0.1\n\n' + '0.1\n' * 6, r"line 2 of '.*' = '': must be one number"),
        ('0.1 0.2\n' * 8, r"line 1 of '.*' = '0.1 0.2': must be one number"),
        ('0.1\n' * 4 + 'nan\n' + '0.1\n' * 3, r"line 5 of '.*' = 'nan': must be a finite number"),
        ('0.1\n' * 7 + '-inf\n', r"line 8 of '.*' = '-inf': must be a finite number"),
        ('1e999\n' + '0.1\n' * 7, r"line 1 of '.*' = '1e999': must be a finite number"),
        (b'\x80\x02PK' + b'x' * 100, r"line 1 of '.*' = '.+x{36}': must be one number"),
    ],
)
@pytest.mark.parametrize('official_parsing', [False, True])
def test_damaged_files(arch, folder, content, message, official_parsing):
    content = content if isinstance(content, bytes) else content.encode()
    (folder / file_name(arch, 'ffn', 1)).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_official_scores(folder, arch, official_parsing)


@pytest.mark.parametrize('end', ['', '\n', '\n\n', '\r\n'])
def test_ends_of_files(arch, folder, end):
    (folder / file_name(arch, 'ffn', 1)).write_text(('\r\n' if '\r' in end else '\n').join('12345678') + end)
    scores = read_official_scores(folder, arch)['stages.0.blocks.1.mlp_hidden']
    assert scores.tolist() == [i / 5000 for i in range(1, 9)]


def test_files_that_contradict_each_other(arch, folder):
    old = folder / file_name(arch, 'attn', 1)
    shutil.copy(old, folder / file_name(arch, 'attn', 1, k=2))
    with pytest.raises(
        ValueError, match=r'both score stages.0.blocks.1.qk and stages.0.blocks.1.v; keep one'
    ) as caught:
        read_official_scores(folder, arch)
    assert 'attn_6_kl_1_5k.txt' in str(caught.value)
    assert 'attn_6_kl_1_2k.txt' in str(caught.value)
    old.unlink()
    with pytest.raises(ValueError, match=r"attn_6_kl_1_2k.txt' is of 2000 images, '.*neck_6_kl_5k.txt' of 5000"):
        read_official_scores(folder, arch)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(depths=[3]), r"'.*' is of a network of 2 blocks: arch 'small' has 3"),
        (dict(embed_dims=[9], qk_dims=6, v_dims=6), r"neck_6_kl_5k.txt' is of 6 channels: stages.0.embed .* has 9"),
        (dict(v_dims=9), r"attn_6_kl_0_5k.txt' is of 6 channels: stages.0.blocks.0.v of arch 'small' has 9"),
        (dict(mlp_hidden_dims=[[8, 9]]), r"ffn_8_kl_1_5k.txt' is of 8 channels: stages.0.blocks.1.mlp_hidden .* has 9"),
    ],
)
def test_files_of_another_architecture(folder, change, message):
    with pytest.raises(ValueError, match=message):
        read_official_scores(folder, ArchSpec.from_dict(SMALL | change))


def test_names_that_no_deit_has(arch, folder):
    with pytest.raises(ValueError, match=r"arch = 'pvtv2-b2': a pvtv2; the authors publish scores of DeiT only"):
        read_official_scores(folder, get_arch('pvtv2-b2'))
    shutil.copy(folder / file_name(arch, 'ffn', 1), folder / 'Deit_base_2_ffn_8_kl_2_5k.txt')
    with pytest.raises(ValueError, match=r"ffn_8_kl_2_5k.txt' is of block 2: arch 'small' has blocks 0 to 1"):
        read_official_scores(folder, arch)


# ------------------------------------------------------------------ the tool


def run_tool(monkeypatch, *words: object) -> None:
    monkeypatch.setattr(sys, 'argv', [str(TOOL), *map(str, words)])
    runpy.run_path(str(TOOL), run_name='__main__')


@pytest.mark.parametrize(('options', 'parsing'), [([], 'float'), (['--official-parsing'], 'official')])
def test_tool_writes_scores_that_say_where_they_are_from(arch, folder, tmp_path, monkeypatch, capsys, options, parsing):
    arch.save_json(tmp_path / 'arch.json')
    target = tmp_path / 'new' / 'scores.pt'
    run_tool(monkeypatch, folder, target, '--arch', tmp_path / 'arch.json', *options)
    assert capsys.readouterr().out == f'{target}\n'
    scores, meta = load_scores(target, arch)
    expected = read_official_scores(folder, arch, parsing == 'official')
    assert scores.keys() == expected.keys()
    assert all(torch.equal(scores[name], expected[name]) for name in expected)
    assert meta['files'] == {path.name: sha256_of(path) for path in folder.iterdir()}
    assert len(meta['files']) == 5
    assert (meta['method'], meta['images'], meta['parsing']) == ('kl', 5000, parsing)
    assert meta['source'] == 'https://github.com/yuhao318/UP-ViT'
    assert 'hash of the scored checkpoint unknown' in meta['note']
    assert 'checkpoint_sha256' not in meta


def test_tool_reads_deit_base_by_default_and_ends_with_one_line(folder, tmp_path, monkeypatch):
    with pytest.raises(SystemExit) as caught:
        run_tool(monkeypatch, folder, tmp_path / 'scores.pt')
    assert re.fullmatch(
        r"error: '.*' is of a network of 2 blocks: arch 'deit-base' has 12; give the arch that was scored\.",
        str(caught.value),
    )
    assert not (tmp_path / 'scores.pt').exists()
