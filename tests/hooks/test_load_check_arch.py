"""Files that a run starts from and that are of another architecture or of other classes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.runner import Runner

from upvit_mm.checkpoints import known_arch, save_checkpoint
from upvit_mm.hooks.load_check import CheckLoaded
from upvit_mm.runner import build_runner


def test_images_of_another_size_are_named(model, load, stock_arch):
    source = model('deit', arch=stock_arch('deit', img_size=96))
    for part in ('test', 'train'):
        with pytest.raises(ValueError, match=r'pos_embed has shape \(1, 37, 48\).* set img_size=96 in the arch'):
            load(model('deit'), {'state_dict': source.state_dict()}, part)


@pytest.mark.parametrize('part', ['test', 'train'])
@pytest.mark.parametrize('way', ['arch', 'config'])
def test_a_network_of_other_scales_is_refused(way, part, model, load, stock_arch):
    source, target = model('detector'), model('detector', arch=stock_arch('pvtv2', qk_scales=0.2))
    backbone = dict(type='upvit_mm.UPPVTv2', arch=source.backbone.arch.to_dict())
    meta = {'arch': backbone['arch']} if way == 'arch' else {'cfg': f'model = dict(backbone={backbone})'}
    content = {'state_dict': source.state_dict(), 'meta': meta}
    with pytest.raises(ValueError, match=r"qk_scales\[0\]\[0\] = 0.25 in the file's own arch, 0.2 in the arch that is"):
        load(target, content, part)
    assert load(model('detector', seed=1), content, part) == []


def test_trainings_write_their_arch_and_compare_it(digits_training):
    cfg = digits_training('first', **{'train_cfg.max_epochs': 1})
    build_runner(cfg, ('train',)).train()
    path = str(Path(cfg.work_dir, 'epoch_1.pth'))
    meta = torch.load(path, weights_only=False)['meta']
    assert meta['arch']['qk_scales'] == [[0.5], [0.3, 0.4], [0.3, 0.6], [0.7]]
    assert known_arch({'meta': {'cfg': meta['cfg']}}).to_dict() == meta['arch']
    scales = {'model.backbone.arch.qk_scales': [[0.5], [0.3, 0.4], [0.3, 0.6], [0.1]]}
    refused = (
        r"epoch_1.pth' is of another network than .*: qk_scales\[3\]\[0\] = 0.7 in the file's own arch, 0.1 in the"
    )
    for start in (dict(load_from=path), dict(load_from=path, resume=True)):
        with pytest.raises(ValueError, match=refused):
            build_runner(digits_training(f'run{len(start)}', **scales, **start), ('train',)).train()


def test_a_whole_models_init_cfg_is_compared(model, stock_arch, tmp_path, heard):
    """mmengine loads it itself, before this hook can see the file."""
    source = model('pvtv2')
    path = save_checkpoint(tmp_path / 'y.pth', source.state_dict(), arch=source.backbone.arch.to_dict())
    target = model('pvtv2', arch=stock_arch('pvtv2', qk_scales=0.2))
    runner = Runner(target, str(tmp_path), experiment_name=tmp_path.name, log_level='WARNING')
    hook = CheckLoaded(part='train')
    target.init_cfg = dict(type='Pretrained', checkpoint=str(path))
    with pytest.raises(
        ValueError, match=r"y.pth' is of another network than .* 0.25 in the file's own arch, 0.2 in the"
    ):
        hook.before_train(runner)
    target.init_cfg = [dict(type='Constant', val=1.0, layer='LayerNorm')]
    hook.before_train(runner)
    torch.save({'state_dict': source.state_dict(), 'extra': Path}, path)  # mmengine reads it, we do not
    target.init_cfg = dict(type='Pretrained', checkpoint=str(path))
    log = heard(runner)
    hook.before_train(runner)
    assert 'model.init_cfg: its architecture is not compared: checkpoint' in log.text


def test_classes_are_compared(digits_training):
    cfg = digits_training('first', **{'train_cfg.max_epochs': 1}, custom_hooks=[])
    build_runner(cfg, ('train',)).train()
    path = Path(cfg.work_dir, 'epoch_1.pth')
    content = torch.load(path, weights_only=False)
    classes = content['meta']['dataset_meta']['classes']
    content['meta']['dataset_meta']['classes'] = [*classes[1:], classes[0]]
    torch.save(content, path)
    cfg = digits_training('test', load_from=str(path), custom_hooks=[])
    runner = build_runner(cfg, ('test',))
    with pytest.raises(ValueError, match=r'has learned 10 classes .* test_dataloader has 10 .* mean other classes'):
        runner.load_or_resume()
    runner = build_runner(digits_training('train', load_from=str(path), custom_hooks=[]), ('train',))
    runner.load_or_resume()  # a warning


def test_the_recorded_arch_is_of_one_network(digits_training):
    runner = build_runner(digits_training('run'), ('train',))
    runner.model.other = type(runner.model.backbone)(runner.model.backbone.arch.with_widths({'mlp_hidden_dims': 8}))
    checkpoint = {'meta': {}}
    next(hook for hook in runner.hooks if type(hook).__name__ == 'RecordArch').before_save_checkpoint(
        runner, checkpoint
    )
    assert checkpoint == {'meta': {}}


def test_a_saved_arch_does_not_stop_mmengine(model, load, tmp_path):
    source = model('pvtv2')
    path = save_checkpoint(tmp_path / 'y.pth', source.state_dict(), arch=source.backbone.arch.to_dict())
    assert load(model('pvtv2', seed=1), torch.load(path, weights_only=True)) == []
