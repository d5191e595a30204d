"""What the pruning job and its tool refuse, in one line and before anything is scored."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config

from upvit_mm.arch import ArchSpec
from upvit_mm.workflow.prune import PruneJob, prune
from upvit_mm.workflow.prune_goal import goal_and_settings, source_of
from upvit_mm.workflow.prune_settings import PruneSettings

ROOT = Path(__file__).parents[2]
QUICK = dict(method='random', eval_images=0, per_class=1)


@pytest.mark.parametrize('family', ['deit'])
@pytest.mark.parametrize(
    ('given', 'message'),
    [
        ({'budget': 'macs=2%'}, 'out of reach: the narrowest network costs'),
        ({'budget': 'half'}, "budget = 'half': must look like"),
        ({'target': 'pvtv2-b0'}, "target family = 'pvtv2': the source is a deit"),
        ({'widths': {'img_size': 96}}, 'widths: img_size cannot be pruned; known: depths, embed_dims'),
        ({'widths': {'qk_dims': 50}}, r'qk_dims\[0\]\[0\] = 50: must be a multiple of num_heads'),
        ({'target': 'deit-tiny'}, 'depths ='),
        ({'plan': 'no.json'}, r"plan 'no.json' does not exist"),
        ({'widths': {'mlp_hidden_dims': 9}, 'draws': 0}, 'draws = 0: must be at least 1'),
        ({'widths': {'mlp_hidden_dims': 9}, 'near_share': 2.0}, r'near_share = 2.0: must be above 0'),
        ({'widths': {'mlp_hidden_dims': 9}, 'images': 'no', 'method': 'taylor'}, "image folder 'no' does not exist"),
    ],
)
def test_mistakes(cfg, checkpoint, tmp_path, given, message):
    def run():
        goal, settings = goal_and_settings(cfg, QUICK | given)
        prune(cfg, checkpoint, goal, tmp_path / 'out', settings)

    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run()
    assert not (tmp_path / 'out/pruned.pth').exists()


@pytest.mark.parametrize('family', ['deit'])
@pytest.mark.parametrize(
    ('given', 'message'),
    [
        ({'budget': 'macs=2%'}, 'out of reach: the narrowest network costs'),
        ({'budget': 'macs=2%', 'non_uniform': True}, 'out of reach: the narrowest network costs'),
        ({'budget': 'macs=50%', 'head_policy': 'regroup'}, "head_policy = 'regroup': a budget takes"),
        ({'widths': {'mlp_hidden_dims': 4096}}, 'mlp_hidden: the target keeps 4096 of'),
        ({'widths': {'num_heads': 1}}, "head_policy 'within' keeps the"),
        ({'widths': {'qk_dims': 48}, 'tie_qkv': True}, 'have different widths and cannot share one index set'),
        ({'widths': {'depths': [1], 'mlp_hidden_dims': 4096}}, 'mlp_hidden: the target keeps 4096 of'),
        ({'target': 'deit-tiny'}, 'target depths = .* pruning cannot deepen the source'),
    ],
)
def test_goals_out_of_reach_are_refused_before_anything_is_scored(cfg, checkpoint, tmp_path, given, message):
    goal, settings = goal_and_settings(cfg, QUICK | given)
    with pytest.raises(ValueError, match=message):
        PruneJob(cfg, checkpoint, goal, tmp_path / 'out', settings)


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        ({'head_policy': 'all'}, "head_policy = 'all': must be one of within, select, regroup"),
        ({'round_to': 0}, 'round_to = 0: must be at least 1'),
        ({'round_to': 'all'}, "round_to = 'all': must be a whole number, or 'auto'"),
        ({'window_size': -1}, 'window_size = -1: must be at least 0'),
        ({'eval_images': -1}, 'eval_images = -1: must be at least 0'),
        ({'min_share': 1.5}, 'min_share = 1.5: must lie in 0 to 1'),
        ({'ridge': 0}, 'ridge = 0: must be above 0'),
        ({'per_class': 'abc'}, "per_class = 'abc': must be a whole number"),
        ({'per_class': 2.5}, r'per_class = 2.5: must be a whole number'),
        ({'draws': True}, 'draws = True: must be a whole number'),
        ({'ridge': 'low'}, "ridge = 'low': must be a number"),
        ({'compensate': 'no'}, "compensate = 'no': must be True or False"),
        ({'images': 3}, 'images = 3: must be a text'),
        ({'method': None}, 'method = None: must be a text'),
    ],
)
def test_settings_that_make_no_sense(given, message):
    with pytest.raises(ValueError, match=message):
        PruneSettings(**given)
    assert PruneSettings(ridge=1, images=None).ridge == 1


def test_auto_rounds_to_what_kernels_of_the_device_like():
    assert [PruneSettings(round_to='auto', device=name).round_to for name in ('cpu', 'cuda', 'cuda:1')] == [16, 8, 8]


@pytest.mark.parametrize(
    ('model', 'message'),
    [
        (
            dict(backbone=dict(type='ResNet', depth=50)),
            r"model.backbone.type = 'ResNet': must be one of upvit_mm.UPDeiT",
        ),
        (dict(backbone=dict(type='mmdet.PyramidVisionTransformerV2')), "type = 'mmdet.PyramidVisionTransformerV2'"),
        (dict(type='ImageClassifier'), 'model.backbone.type = None'),
        (dict(backbone=dict(type='upvit_mm.UPDeiT')), 'model.backbone.arch of upvit_mm.UPDeiT: is missing'),
    ],
)
def test_backbones_that_are_not_ours(model, message, tmp_path):
    cfg = Config(dict(model=model))
    with pytest.raises(ValueError, match=message):
        source_of(cfg)
    with pytest.raises(ValueError, match=message):
        goal_and_settings(cfg, {'widths': {'mlp_hidden_dims': 64}})
    goal, settings = goal_and_settings(cfg, {'budget': 'params=50%'})
    with pytest.raises(ValueError, match=message):
        PruneJob(cfg, 'dense.pth', goal, tmp_path, settings)


@pytest.mark.parametrize('family', ['deit'])
@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--budget', 'half'], "error: --budget = 'half': must look like"),
        (['--budget', 'params=50%', '--device', 'cuda'], "error: --device = 'cuda': torch"),
    ],
)
def test_a_mistake_gives_one_line(prune_tool, run, words, message):
    output = run(prune_tool(*words, '--work-dir', 'out'), status=1)
    assert message in output
    assert 'Traceback' not in output


@pytest.mark.parametrize('family', ['deit'])
def test_a_full_disk_spoils_nothing(cfg, checkpoint, tmp_path, monkeypatch):
    """The second target meets a full disk: what the first left stays whole, and its record says so."""
    goal, settings = _wide(ArchSpec.from_dict(cfg.arch)), PruneSettings(**QUICK)
    prune(cfg, checkpoint, goal, tmp_path / 'out', settings)
    before = {p.name: p.read_bytes() for p in (tmp_path / 'out').iterdir()}

    def full(self, *args, **kwargs):
        raise OSError(28, 'No space left on device', str(self))

    monkeypatch.setattr(Path, 'replace', full)
    narrower = goal.with_widths({'mlp_hidden_dims': 32})
    with pytest.raises(OSError, match='No space left'):
        prune(cfg, checkpoint, narrower, tmp_path / 'out', settings)
    assert {p.name: p.read_bytes() for p in (tmp_path / 'out').iterdir()} == before
    monkeypatch.undo()
    assert prune(cfg, checkpoint, narrower, tmp_path / 'out', settings).plan.target_arch.mlp_hidden_dims[0][0] == 32


@pytest.mark.parametrize('family', ['deit'])
def test_a_work_dir_that_cannot_be_written(prune_tool, run, tmp_path):
    (tmp_path / 'file').write_text('not a folder')
    output = run(prune_tool('--widths', 'mlp_hidden_dims=64', '--method', 'random', '--work-dir', 'file'), status=1)
    assert 'error:' in output
    assert 'Traceback' not in output


def _wide(arch: ArchSpec) -> ArchSpec:
    return arch.with_widths({'mlp_hidden_dims': 64})
