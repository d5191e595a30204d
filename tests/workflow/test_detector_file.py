"""Config files of pruned detectors: what they inherit, where they lead, and where they train."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config

from upvit_mm.arch import ArchSpec
from upvit_mm.compare.contestants import Contestant, with_backbone
from upvit_mm.workflow.detector_file import narrowed, with_own_backbone, write_detector, write_follower


@pytest.fixture
def config(detector_config, archs, tmp_path) -> Path:
    """The file of a small detector's config."""
    cfg = with_backbone(detector_config('pvtv2'), Contestant.parse(f'a={archs("pvtv2")[0]}'))
    cfg.dump(tmp_path / 'dense.py')
    return tmp_path / 'dense.py'


def test_options_of_the_command_line_are_in_the_file_that_is_inherited(config, tmp_path):
    cfg = Config.fromfile(config)
    cfg.merge_from_dict({'model.bbox_head.stacked_convs': 1, 'work_dir': 'dense', 'resume': True})
    assert write_detector(tmp_path / 'out', cfg, narrowed(cfg, _arch(cfg)), 'x.pth') == ['dense.py', 'detector.py']
    made = Config.fromfile(tmp_path / 'out/detector.py')
    assert made.model.bbox_head.stacked_convs == 1
    assert made.load_from == str(tmp_path / 'out/x.pth')
    assert made.resume is False
    assert made.work_dir == str(tmp_path / 'out/trained')  # not the dense detector's, whose files would be overwritten
    own = Config.fromfile(cfg.filename)
    assert write_detector(tmp_path / 'out', own, narrowed(own, _arch(own)), 'x.pth') == ['detector.py']
    assert not (tmp_path / 'out/dense.py').exists()  # a later job without options inherits the config itself
    assert (
        Config.fromfile(tmp_path / 'out/detector.py').model.bbox_head.stacked_convs == own.model.bbox_head.stacked_convs
    )


def test_a_linked_folder_of_results(config, tmp_path):
    """Work dirs are often on another disk. The system resolves a link before ``..``, and mmengine partly after it."""
    cfg = Config.fromfile(config)
    (tmp_path / 'disk/far/runs').mkdir(parents=True)
    (tmp_path / 'work_dirs').symlink_to(tmp_path / 'disk/far/runs')
    out = tmp_path / 'work_dirs/half'
    out.mkdir()
    write_detector(out, cfg, narrowed(cfg, _arch(cfg)), 'x.pth')
    write_follower(out, Path(cfg.filename), str(tmp_path / 'dense.pth'))
    made = Config.fromfile(out / 'detector_distil.py')
    assert made.train_dataloader == cfg.train_dataloader
    hook = made.custom_hooks[-1]
    assert (hook.config, hook.checkpoint) == (str(tmp_path / 'dense.py'), str(tmp_path / 'dense.pth'))


def test_a_taught_detector_is_pruned_again(config, tmp_path):
    """Its teacher was the first detector; the next one's is this."""
    first = Config.fromfile(config)
    first.custom_hooks = [dict(type='EMAHook', momentum=0.1)]
    first.dump(config)
    first, out, again = Config.fromfile(config), tmp_path / 'out', tmp_path / 'again'
    write_detector(out, first, narrowed(first, _arch(first)), 'x.pth')
    write_follower(out, config, 'x.pth')
    taught = Config.fromfile(out / 'detector_distil.py')
    assert [hook.type for hook in taught.custom_hooks] == ['EMAHook', 'upvit_mm.FollowDense']
    write_detector(again, taught, narrowed(taught, _arch(taught)), 'y.pth')
    write_follower(again, out / 'detector_distil.py', 'z.pth')
    assert Config.fromfile(again / 'detector.py').custom_hooks == [dict(type='EMAHook', momentum=0.1)]
    _, follow = Config.fromfile(again / 'detector_distil.py').custom_hooks
    assert Path(follow.config).resolve() == out / 'detector_distil.py'
    assert taught.work_dir == str(out / 'distilled')


def test_a_config_with_imported_types_is_written_as_text(config, tmp_path):
    """A text config cannot inherit such a file."""
    text = config.read_text().replace("type='RetinaNet'", 'type=RetinaNet')
    (tmp_path / 'new.py').write_text(f'from mmdet.models import RetinaNet\n{text}')
    cfg = Config.fromfile(tmp_path / 'new.py')
    own = with_own_backbone(cfg)
    assert write_detector(tmp_path / 'out', cfg, narrowed(own, _arch(own)), 'x.pth') == ['dense.py', 'detector.py']
    assert Config.fromfile(tmp_path / 'out/detector.py').model.type == 'mmdet.models.RetinaNet'


def test_a_dense_detector_at_an_address(tmp_path):
    (tmp_path / 'detector.py').write_text('x = 1\n')
    write_follower(tmp_path, tmp_path / 'dense.py', 'https://a.org/b.pth')
    (hook,) = Config.fromfile(tmp_path / 'detector_distil.py').custom_hooks
    assert (hook.config, hook.checkpoint) == (f'{tmp_path}/dense.py', 'https://a.org/b.pth')


def _arch(cfg: Config) -> ArchSpec:
    return ArchSpec.from_dict(cfg.model.backbone.arch)
