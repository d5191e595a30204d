"""From command line to Runner, without running."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from upvit_mm.cli import one_line_errors
from upvit_mm.runner import add_run_arguments, load_config

CONFIGS = Path(__file__).parents[1] / 'configs'
DEMO = str(CONFIGS / 'demo/retinanet_up-pvtv2-micro_fpn_digits.py')


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument('config')
    add_run_arguments(parser)
    return parser.parse_args(words)


def test_work_dir_and_options():
    assert load_config(parse(DEMO)).work_dir == 'work_dirs/retinanet_up-pvtv2-micro_fpn_digits'
    cfg = load_config(parse(DEMO, '--work-dir', 'here', '--cfg-options', 'optim_wrapper.optimizer.lr=0.5'))
    assert cfg.work_dir == 'here'
    assert cfg.optim_wrapper.optimizer.lr == 0.5


def test_missing_config():
    with pytest.raises(FileNotFoundError, match=r"config 'nowhere.py' does not exist"):
        load_config(parse('nowhere.py'))


def test_our_errors_are_one_line(capsys):
    with pytest.raises(SystemExit) as end, one_line_errors():
        load_config(parse('nowhere.py'))
    assert str(end.value).startswith("error: config 'nowhere.py' does not exist")


def test_foreign_errors_keep_their_traceback():
    with pytest.raises(ValueError, match='invalid literal'), one_line_errors():
        int('x')
