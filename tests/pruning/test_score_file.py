"""The file of scores."""

from __future__ import annotations

import pytest
import torch

from upvit_mm.arch import ArchSpec
from upvit_mm.pruning.baselines import random_scores
from upvit_mm.pruning.score_file import load_scores, save_scores


@pytest.fixture
def arch(tiny_arch) -> ArchSpec:
    return ArchSpec.from_dict(tiny_arch('pvtv2'))


def test_round_trip(arch, tmp_path):
    scores = random_scores(arch, 0)
    loaded, meta = load_scores(save_scores(tmp_path / 'scores.pt', scores, arch, method='random'), arch)
    assert loaded.keys() == scores.keys()
    assert all(torch.equal(loaded[name], scores[name]) for name in scores)
    assert (meta['method'], meta['version'], meta['arch']) == ('random', 1, arch.to_dict())


def test_bad_scores_are_not_written(arch, tmp_path):
    scores = random_scores(arch, 0)
    path = save_scores(tmp_path / 'scores.pt', scores, arch)
    before = path.read_bytes()
    scores['stages.1.blocks.0.v'][3] = float('inf')
    with pytest.raises(ValueError, match=r"scores of 'stages.1.blocks.0.v' hold NaN or Inf"):
        save_scores(path, scores, arch)
    assert path.read_bytes() == before


def test_bad_files(arch, tiny_arch, tmp_path):
    path = save_scores(tmp_path / 'scores.pt', random_scores(arch, 0), arch)
    with pytest.raises(ValueError, match=r"scores of 'stages.0.blocks.0.qk' have shape \(7,\): the dim has 24"):
        load_scores(path, ArchSpec.from_dict(tiny_arch('deit', embed_dims=[16])))
    with pytest.raises(FileNotFoundError, match=r"nowhere.pt' do not exist"):
        load_scores('nowhere.pt', arch)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match='are damaged or no file of scores'):
        load_scores(path, arch)
    torch.save({'scores': {}, 'meta': {'version': 2}}, path)
    with pytest.raises(ValueError, match='have version 2'):
        load_scores(path, arch)
