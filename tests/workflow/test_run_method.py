"""Which method scores."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from upvit_mm.pruning import plan_for_target, prunable_dims
from upvit_mm.pruning.batch import Batch
from upvit_mm.pruning.crew import Crew
from upvit_mm.pruning.criteria import ReadTokensChange, token_deviations
from upvit_mm.pruning.importance import POSTERIOR
from upvit_mm.pruning.methods import METHODS
from upvit_mm.pruning.token_net import TokenNet
from upvit_mm.workflow import run_method
from upvit_mm.workflow.prune_settings import PruneSettings
from upvit_mm.workflow.run_method import score_images


@pytest.mark.parametrize('method', ['magnitude', 'random', 'fischer'])
def test_no_other_method_runs_as_hybrid(method, family, stock_arch, build, tmp_path, monkeypatch):
    monkeypatch.setattr(run_method, '_score', lambda *args: pytest.fail(f'{method} scored as another method'))
    net = TokenNet(build(family, stock_arch(family)))
    settings = SimpleNamespace(method=method, max_rows=8, draws=1, seed=0, amp=None, near_share=0.1)
    assert {'magnitude', 'random'} < set(METHODS)
    with pytest.raises(AssertionError, match=f"method = '{method}': not one that reads images"):
        score_images(net, POSTERIOR, [], settings, tmp_path, Crew(), None)


class Proxy(list):
    """Batches of one size."""

    def size_of(self, k: int) -> int:
        return len(self[k].images)


@pytest.mark.parametrize('method', ['fisher', 'hybrid', 'exact'])
def test_the_mean_of_a_turned_stream_is_never_near_the_cut(method, build, image, tiny_arch, tmp_path):
    """Its own score is 0: without it nothing changes, because the stream has no mean."""
    net, embed = TokenNet(build('deit')), 'stages.0.embed'
    net.turned = frozenset([embed])
    proxy = Proxy([Batch(image(32, 32), [0, 1])])
    target = type(net.backbone.arch).from_dict(tiny_arch('deit', embed_dims=[1]))
    groups = {name: dim.groups for name, dim in prunable_dims(target).items()}

    def cut(scores):
        return plan_for_target(net.backbone.arch, target, scores, turned=net.turned).kept, groups

    criterion = ReadTokensChange(token_deviations(net, proxy))
    settings = PruneSettings(method=method, near_share=0.1, draws=1)
    scores = score_images(net, criterion, proxy, settings, tmp_path, Crew(), cut)
    assert int(scores[embed].argmax()) == 0
    assert cut(scores)[0][embed].tolist() == [0]
