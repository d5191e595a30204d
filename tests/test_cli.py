"""What the tools share: messages in the words of the command line."""

from __future__ import annotations

import sys

import pytest

from upvit_mm.cli import one_line_errors, with_flags
from upvit_mm.workflow.prune_settings import PruneSettings


@pytest.mark.parametrize(
    ('text', 'words', 'expected'),
    [
        ('round_to = 0: must be at least 1.', ['--round-to', '0'], '--round-to = 0: must be at least 1.'),
        ('round_to = 0: must be at least 1.', ['--round-to=0'], '--round-to = 0: must be at least 1.'),
        ('round_to = 0: must be at least 1.', ['--budget', 'macs=5%'], 'round_to = 0: must be at least 1.'),
        ('a = 1, eval_images = 2', ['--eval-images', '2', '--a', '1'], '--a = 1, --eval-images = 2'),
        ('prune = dict(round_to=0), model.seed = 3', ['--round-to', '8', '--seed', '3'], None),
        ("size '8*8': must be", ['--size', '8*8'], None),
    ],
)
def test_settings_are_spelled_as_flags(text, words, expected):
    assert with_flags(text, words) == (expected or text)


def test_at_the_door_of_the_tools(monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['prune.py', 'a.py', 'a.pth', '--near-share', '2'])
    with (
        pytest.raises(SystemExit, match=r'^error: --near-share = 2\.0: must be above 0 and at most 1\.$'),
        one_line_errors(),
    ):
        PruneSettings(near_share=2.0)
