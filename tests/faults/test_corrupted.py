"""200 seeded corruptions of the files that jobs read: each is an error that names the file, or changes nothing.

Bits of tensors in ``.safetensors`` and in torch's old format have no checksum anywhere: there only truncation is seen.
"""

from __future__ import annotations

import contextlib
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from mmengine.config import Config

from upvit_mm.arch import ArchSpec, resolve_arch
from upvit_mm.checkpoints import load_backbone, read_checkpoint, save_checkpoint
from upvit_mm.cli import is_mistake
from upvit_mm.pruning import PrunePlan, make_plan, plan_for_target
from upvit_mm.pruning.baselines import random_scores
from upvit_mm.pruning.score_file import load_scores, save_scores

COUNT = 50  # of each kind of file
FIRST = {'checkpoint': 0, 'scores': COUNT, 'plan': 2 * COUNT, 'arch': 3 * COUNT}  # seed
TARGET = dict(embed_dims=[8, 12, 16, 16], qk_dims=[4, 8, 10, 12], v_dims=[4, 8, 10, 12], mlp_hidden_dims=12)


def corrupted(content: bytes, seed: int) -> bytes:
    """Cut off, with one bit flipped, or with a run of zeros in it: the seeds take turns."""
    chance = random.Random(seed)
    place, damaged = chance.randrange(len(content)), bytearray(content)
    if seed % 3 == 0:
        return content[:place]
    if seed % 3 == 1:
        damaged[place] ^= 1 << chance.randrange(8)
    else:
        run = damaged[place : place + chance.randint(1, 64)]
        damaged[place : place + len(run)] = bytes(len(run))
    return bytes(damaged)


@contextlib.contextmanager
def patience(seconds: int) -> Iterator[None]:
    def give_up(*args):
        pytest.fail('reading hangs')

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def attempt(read: Callable[[Path], Any], path: Path) -> tuple[Any, Exception | None]:
    """What reading gives, or the error that a tool would end with."""
    with patience(30):
        try:
            return plain(read(path)), None
        except (ValueError, OSError) as error:
            return None, error


def plain(value: Any) -> Any:
    """To compare with ``==``, bit for bit."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, PrunePlan):
        return plain(vars(value))
    if isinstance(value, (tuple, list)):
        return [plain(v) for v in value]
    return {k: plain(v) for k, v in value.items()} if isinstance(value, dict) else value


@pytest.fixture
def written(arch, build, tmp_path) -> dict[str, tuple[Path, Callable[[Path], Any]]]:
    """By kind, a file as the package writes it and the function that reads it."""
    scores = random_scores(arch, 0)
    plan = plan_for_target(arch, arch.with_widths(TARGET), scores)
    plan.meta.update(goal='half', sha256='0' * 64, costs={'macs': 12345})
    state = {f'backbone.{k}': v for k, v in build('pvtv2', arch).state_dict().items()}
    checkpoint = save_checkpoint(tmp_path / 'pruned.pth', state, arch=arch.to_dict(), seed=0)
    return {
        'checkpoint': (checkpoint, lambda path: (load_backbone(path), read_checkpoint(path)['meta'])),
        'scores': (save_scores(tmp_path / 'scores.pt', scores, arch, method='exact'), lambda p: load_scores(p, arch)),
        'plan': (plan.save(tmp_path / 'plan.json'), PrunePlan.load),
        'arch': (arch.save_json(tmp_path / 'arch.json'), ArchSpec.from_json),
    }


@pytest.mark.parametrize('kind', FIRST)
def test_a_corrupted_file_is_refused_or_reads_as_before(written, kind):
    path, read = written[kind]
    content, expected, refused = path.read_bytes(), plain(read(path)), 0
    for seed in range(FIRST[kind], FIRST[kind] + COUNT):
        path.write_bytes(corrupted(content, seed))
        result, error = attempt(read, path)
        if error is None:
            assert result == expected, f'seed {seed}'
            continue
        refused += 1
        assert is_mistake(error)
        assert repr(str(path)) in str(error)
        assert len(str(error).splitlines()) == 1
    assert refused >= 0.8 * COUNT  # the others changed padding between records


@pytest.mark.parametrize('suffix', ['.safetensors', '.pth'])
def test_formats_without_checksums_reveal_truncation(build, arch, tmp_path, suffix):
    path = tmp_path / f'x{suffix}'
    state = {name: tensor.contiguous() for name, tensor in build('pvtv2', arch).state_dict().items()}
    if suffix == '.pth':
        torch.save(state, path, _use_new_zipfile_serialization=False)
    else:
        safetensors.torch.save_file(state, path)
    content = path.read_bytes()
    for seed in range(20):
        path.write_bytes(content[: random.Random(seed).randrange(len(content))])
        with pytest.raises(ValueError, match=rf"x\{suffix}' is corrupt or no checkpoint"):
            read_checkpoint(path)


@pytest.mark.parametrize('change', [('"num_heads": [[1], [1]', '"num_heads": [[1], [2]'), ('0.3', '0.4')])
def test_an_arch_that_builds_the_same_tensors_is_refused_too(arch, tmp_path, change):
    """Heads and scales are in no tensor's shape: no checkpoint would tell. By hand, without its sha256, all may be."""
    path = arch.save_json(tmp_path / 'arch.json')
    path.write_text(path.read_text().replace(*change))
    (tmp_path / 'config.py').write_text("_base_ = './arch.json'\nbackbone = dict(arch=_base_.arch)\n")
    through_config = Config.fromfile(tmp_path / 'config.py').backbone.arch
    for given in (str(path), through_config):
        with pytest.raises(ValueError, match='arch does not match its sha256: damaged, or edited by hand; then remove'):
            resolve_arch(given)
    del through_config['sha256']
    assert resolve_arch(through_config) != arch


def test_a_plan_of_other_channels_is_refused(arch, tmp_path):
    path = make_plan(arch, {'stages.0.embed': [0, 2]}).save(tmp_path / 'plan.json')
    path.write_text(path.read_text().replace('"stages.0.embed": [0, 2]', '"stages.0.embed": [0, 3]'))
    with pytest.raises(ValueError, match=r"plan.json' is damaged or no plan: content does not match its sha256"):
        PrunePlan.load(path)
