"""The choice of blocks as a job: it goes on after an interruption, and is not made twice."""

from __future__ import annotations

import pytest

from upvit_mm.workflow import job_blocks
from upvit_mm.workflow.prune import PruneJob
from upvit_mm.workflow.prune_goal import source_of
from upvit_mm.workflow.prune_settings import PruneSettings


@pytest.mark.parametrize('family', ['deit'])
def test_an_interrupted_choice_goes_on(cfg, checkpoint, tmp_path, monkeypatch):
    real, calls = job_blocks.distance_sums, []

    def counted(net, batch, closed, criterion, report):
        if len(calls) == stop_after:
            raise KeyboardInterrupt
        calls.append(len(closed))
        return real(net, batch, closed, criterion, report)

    def blocks(folder):
        calls.clear()
        settings = PruneSettings(per_class=1, batch_size=4, eval_images=0, method='random')
        goal = source_of(cfg).with_widths({'depths': [1]})
        return PruneJob(cfg, checkpoint, goal, tmp_path / folder, settings).planning.blocks

    monkeypatch.setattr(job_blocks, 'distance_sums', counted)
    stop_after = 9
    calm = blocks('calm')
    assert calls == [3, 3, 3]  # 10 images in batches of 4, three candidates
    assert len(calm[0]) == 1
    stop_after = 2
    with pytest.raises(KeyboardInterrupt):
        blocks('cut')
    stop_after = 9
    assert blocks('cut') == calm
    assert calls == [3]
    assert blocks('cut') == calm
    assert calls == []
    assert not (tmp_path / 'cut/partial').exists()
