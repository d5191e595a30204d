"""Which method scores."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from upvit_mm.pruning.importance import POSTERIOR
from upvit_mm.pruning.methods import METHODS
from upvit_mm.pruning.shared_work import Crew
from upvit_mm.pruning.token_net import TokenNet
from upvit_mm.workflow import run_method
from upvit_mm.workflow.run_method import score_images


@pytest.mark.parametrize('method', ['magnitude', 'random', 'fischer'])
def test_no_other_method_runs_as_hybrid(method, family, stock_arch, build, tmp_path, monkeypatch):
    monkeypatch.setattr(run_method, '_score', lambda *args: pytest.fail(f'{method} scored as another method'))
    net = TokenNet(build(family, stock_arch(family)))
    settings = SimpleNamespace(method=method, max_rows=8, draws=1, seed=0, near_share=0.1)
    assert {'magnitude', 'random'} < set(METHODS)
    with pytest.raises(AssertionError, match=f"method = '{method}': not one that reads images"):
        score_images(net, POSTERIOR, [], settings, tmp_path, Crew(), None)
