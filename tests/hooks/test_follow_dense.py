"""A pruned detector that is trained with the dense one as teacher."""

from __future__ import annotations

import copy
import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from torch import nn
from torch.utils._pytree import tree_leaves

from upvit_mm.arch import ArchSpec
from upvit_mm.hooks import FollowDense
from upvit_mm.runner import build_runner
from upvit_mm.workflow.detector_file import narrowed, with_own_backbone
from upvit_mm.workflow.whole_detector import build_detector

ROOT = Path(__file__).parents[2]
WEIGHT = 2.5
# a step in two processes, each with half of the batch: the mean of both gradients
TWO_PROCESSES = """
import logging
import sys
import sys
from types import SimpleNamespace

import torch
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel

from upvit_mm.hooks import FollowDense
from upvit_mm.workflow.whole_detector import build_detector

folder = sys.argv[1]
torch.distributed.init_process_group('gloo')
rank = torch.distributed.get_rank()
given = torch.load(f'{folder}/given.pt', weights_only=False)
model = build_detector(Config.fromfile(f'{folder}/pruned.py'))
model.load_state_dict(given['state'])
ddp = MMDistributedDataParallel(model.train(), broadcast_buffers=False)
hook = FollowDense(f'{folder}/dense.py', f'{folder}/dense.pth', loss_weight=2.5)
hook.before_train(SimpleNamespace(model=ddp, logger=logging.getLogger()))
images, samples = given['batch']
half = slice(2 * rank, 2 * rank + 2)
losses = ddp(inputs=images[half], data_samples=samples[half], mode='loss')
model.parse_losses(losses)[0].backward()
if rank == 0:
    torch.save({name: p.grad for name, p in model.named_parameters()}, f'{folder}/found.pt')
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


@pytest.fixture
def pair(detector_config, archs, tmp_path, randomise):
    """Configs of a small dense detector and a narrower one; ``dense.py``, ``dense.pth``, ``pruned.py``, ``pruned.pth``
    are there."""
    wide, narrow = (ArchSpec.from_json(path) for path in archs('pvtv2'))
    cfg = detector_config('pvtv2')
    cfg.model.backbone.update(drop_path_rate=0.0, init_cfg=None)
    dense = narrowed(with_own_backbone(cfg), wide)
    pruned = narrowed(dense, narrow)
    for seed, (name, config) in enumerate((('dense', dense), ('pruned', pruned))):
        config.dump(tmp_path / f'{name}.py')
        torch.manual_seed(seed)
        detector = build_detector(config)
        detector.init_weights()
        randomise(detector.backbone, seed)
        torch.save({'state_dict': detector.state_dict()}, tmp_path / f'{name}.pth')
    pruned.load_from = str(tmp_path / 'pruned.pth')
    return dense, pruned


@pytest.fixture
def hook(tmp_path):
    """``hook(**changes)``: its settings for that pair."""

    def make(**changes) -> dict:
        files = dict(config=str(tmp_path / 'dense.py'), checkpoint=str(tmp_path / 'dense.pth'))
        return dict(type='upvit_mm.FollowDense', **files, loss_weight=WEIGHT) | changes

    return make


@pytest.fixture
def training(pair, tmp_path):
    """``training(folder, *hooks, **changes)``: the config of a training of the pruned detector: 2 steps an epoch."""

    def make(folder: str, *hooks: dict, **changes) -> Config:
        cfg = copy.deepcopy(pair[1])
        cfg.custom_hooks = [dict(type='upvit_mm.SeedEveryEpoch'), *hooks]
        cfg.default_hooks.logger.interval = 1
        cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
        cfg.update(work_dir=str(tmp_path / folder), log_level='WARNING', randomness=dict(seed=0))
        cfg.experiment_name = f'{tmp_path.name}_{folder}'
        cfg.merge_from_dict(changes)
        return cfg

    return make


def started(runner):
    """A runner at its first step: its model, and a batch."""
    runner.call_hook('before_run')
    runner.load_or_resume()
    runner.call_hook('before_train')
    batch = next(iter(runner.train_dataloader))
    return runner.model.train(), runner.model.data_preprocessor(batch, training=True)


def detector(cfg: Config, file: Path) -> nn.Module:
    model = build_detector(cfg)
    model.load_state_dict(torch.load(file, weights_only=False)['state_dict'])
    return model


def test_the_term(training, hook, pair, tmp_path):
    """By hand, with a dense detector of its own; the other losses are those of a training without the hook."""
    model, batch = started(build_runner(training('with', hook()), ('train',)))
    losses = model(**batch, mode='loss')
    plain, same = started(build_runner(training('without'), ('train',)))
    assert torch.equal(batch['inputs'], same['inputs'])
    others = plain(**same, mode='loss')
    assert losses.keys() == others.keys() | {'loss_tokens'}
    for name, value in others.items():
        torch.testing.assert_close(losses[name], value, rtol=0, atol=0)

    dense = detector(pair[0], tmp_path / 'dense.pth')
    with torch.no_grad():
        ours, theirs = (net.extract_feat(batch['inputs']) for net in (plain, dense))
    parts = [((a - b) ** 2).mean() / b.var() for a, b in zip(ours, theirs)]
    assert len(parts) == 3
    assert losses['loss_tokens'].item() == pytest.approx(WEIGHT * (sum(parts) / len(parts)).item(), rel=1e-5)
    assert losses['loss_tokens'] > 0.1


def test_it_is_zero_for_the_dense_detector_itself(training, hook, pair, tmp_path):
    cfg = training('same', hook())
    cfg.model, cfg.load_from = pair[0].model, str(tmp_path / 'dense.pth')
    model, batch = started(build_runner(cfg, ('train',)))
    # not exactly 0 on every CPU: with gradients torch may choose other kernels, which round differently
    assert model(**batch, mode='loss')['loss_tokens'] < 1e-10


def test_gradients_reach_backbone_and_neck_alone(training, hook):
    model, batch = started(build_runner(training('with', hook()), ('train',)))
    model(**batch, mode='loss')['loss_tokens'].backward()
    reached = {name.partition('.')[0] for name, p in model.named_parameters() if p.grad is not None}
    assert reached == {'backbone', 'neck'}
    assert model.backbone.stages[0].patch_embed.proj.weight.grad.abs().sum() > 0


def test_the_neck_runs_once(training, hook):
    model, batch = started(build_runner(training('with', hook()), ('train',)))
    runs = []
    model.neck.register_forward_hook(lambda *args: runs.append(1))
    model(**batch, mode='loss')
    assert len(runs) == 1


def test_predictions_do_not_change(training, hook, pair, tmp_path):
    model, batch = started(build_runner(training('with', hook()), ('train',)))
    plain = detector(pair[1], tmp_path / 'pruned.pth')
    model(**batch, mode='loss')
    with torch.no_grad():
        ours, theirs = (net.eval()(batch['inputs'], mode='tensor') for net in (model, plain))
    for a, b in zip(tree_leaves(ours), tree_leaves(theirs)):
        assert torch.equal(a, b)


def test_a_model_and_its_files_know_nothing_of_it(training, hook, pair, tmp_path):
    """Keys, optimizer, averages; the dense detector does not change; after the training the model is as before."""
    averages = dict(type='EMAHook', momentum=0.1)
    runner = build_runner(training('with', hook(), averages), ('train',))
    runner.train()
    assert not runner.model._forward_hooks
    assert not runner.model.neck._forward_hooks
    content = torch.load(tmp_path / 'with/epoch_1.pth', weights_only=False)
    plain = build_detector(pair[1])
    assert content['state_dict'].keys() == plain.state_dict().keys()
    trained = [p for group in runner.optim_wrapper.param_groups for p in group['params']]
    ours = {id(p) for p in runner.model.parameters()}
    assert {id(p) for p in trained if p.ndim} == ours  # mmengine adds a scalar of its own
    assert not any('dense' in key for key in content['ema_state_dict'])
    assert runner.message_hub.get_scalar('train/loss_tokens').current() > 0


def test_it_moves_the_maps_towards_the_dense_ones(training, hook, pair, tmp_path):
    """Nearer after some steps than a training without it, from the same start with the same batches."""
    found = {}
    for name, hooks in (('with', [hook(loss_weight=20.0)]), ('without', [])):
        cfg = training(name, *hooks, **{'train_cfg.max_epochs': 8})
        runner = build_runner(cfg, ('train',))
        runner.train()
        model, dense = runner.model.eval(), detector(pair[0], tmp_path / 'dense.pth')
        batch = model.data_preprocessor(next(iter(runner.train_dataloader)), training=False)['inputs']
        with torch.no_grad():
            maps = zip(model.extract_feat(batch), dense.extract_feat(batch))
            found[name] = sum((a - b).square().mean() / b.var() for a, b in maps).item()
    assert found['with'] < 0.9 * found['without']


def test_a_resumed_training_is_the_same(training, hook, identical, tmp_path):
    averages, longer = dict(type='EMAHook', momentum=0.1), {'train_cfg.max_epochs': 2}
    build_runner(training('whole', hook(), averages, **longer), ('train',)).train()
    rest = training('rest', hook(), averages, **longer)
    rest.update(resume=True, load_from=str(tmp_path / 'whole/epoch_1.pth'))
    build_runner(rest, ('train',)).train()
    ours, theirs = (torch.load(tmp_path / f'{n}/epoch_2.pth', weights_only=False) for n in ('rest', 'whole'))
    for part in ('state_dict', 'ema_state_dict'):
        assert identical(ours[part], theirs[part])


def test_gradients_are_accumulated(training, hook, identical, tmp_path):
    """Two steps of two images with one update: the mean of the two gradients, the term included."""
    cfg = training('with', hook())
    cfg.optim_wrapper.accumulative_counts = 2
    runner = build_runner(cfg, ('train',))
    model, batch = started(runner)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.optim_wrapper.initialize_count_status(model, 0, 4)
    images, samples = batch['inputs'], batch['data_samples']
    wanted = 0
    for half in (slice(0, 2), slice(2, 4)):
        losses = model(inputs=images[half], data_samples=samples[half], mode='loss')
        total = model.parse_losses(losses)[0]
        wanted = wanted + torch.autograd.grad(total, model.neck.lateral_convs[0].conv.weight, retain_graph=True)[0] / 2
        runner.optim_wrapper.backward(runner.optim_wrapper.scale_loss(total))
    torch.testing.assert_close(model.neck.lateral_convs[0].conv.weight.grad, wanted)


def test_mixed_precision(training, hook):
    model, batch = started(build_runner(training('with', hook()), ('train',)))
    whole = model(**batch, mode='loss')['loss_tokens']
    with torch.autocast('cpu', dtype=torch.bfloat16):
        mixed = model(**batch, mode='loss')['loss_tokens']
    assert mixed.dtype == torch.float32
    assert mixed.item() == pytest.approx(whole.item(), rel=0.05)


def test_two_processes(training, hook, start, ended, pair, tmp_path):
    model, batch = started(build_runner(training('with', hook()), ('train',)))
    images, samples = batch['inputs'], batch['data_samples']
    torch.save({'state': model.state_dict(), 'batch': (images, samples)}, tmp_path / 'given.pt')
    (tmp_path / 'step.py').write_text(TWO_PROCESSES)
    results = ended(start(2, [sys.executable, str(tmp_path / 'step.py'), str(tmp_path)]))
    assert [status for status, _ in results] == [0, 0], results
    found = torch.load(tmp_path / 'found.pt', weights_only=True)
    for half in (slice(0, 2), slice(2, 4)):
        losses = model(inputs=images[half], data_samples=samples[half], mode='loss')
        (model.parse_losses(losses)[0] / 2).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            assert found[name] is None
        else:
            scale = parameter.grad.abs().max().item()
            torch.testing.assert_close(found[name], parameter.grad, rtol=0, atol=1e-5 * scale + 1e-9)


# ------------------------------------------------------------------ bad input


def refused(hook: dict, model: nn.Module, error: type[Exception], words: str) -> None:
    settings = {key: value for key, value in hook.items() if key != 'type'}
    with pytest.raises(error, match=words):
        FollowDense(**settings).before_train(SimpleNamespace(model=model, logger=logging.getLogger()))


def test_settings(pair, hook, tmp_path):
    model = build_detector(pair[1])
    refused(hook(loss_weight=0), model, ValueError, r'FollowDense: loss_weight = 0: must be above 0; to train without')
    refused(hook(config='no.py'), model, FileNotFoundError, r"FollowDense: config 'no\.py' does not exist; give the")
    refused(hook(checkpoint='no.pth'), model, FileNotFoundError, r"checkpoint 'no\.pth' does not exist")
    refused(hook(), nn.Linear(1, 1), ValueError, r'model.type = Linear: must be a detector of mmdet; a classifier')


def test_two_teachers(training, hook):
    """Both would write the same term, and the first would be lost."""
    model, batch = started(build_runner(training('two', hook(), hook()), ('train',)))
    with pytest.raises(ValueError, match='FollowDense: custom_hooks has several; a detector follows one'):
        model(**batch, mode='loss')


def test_checkpoints_that_do_not_fit(pair, hook, tmp_path):
    model = build_detector(pair[1])
    state = torch.load(tmp_path / 'dense.pth', weights_only=True)['state_dict']
    torch.save({k: v for k, v in state.items() if k.startswith('backbone.')}, tmp_path / 'alone.pth')
    refused(hook(checkpoint=str(tmp_path / 'alone.pth')), model, ValueError, 'has no tensors of bbox_head, neck')
    refused(hook(checkpoint=str(tmp_path / 'pruned.pth')), model, ValueError, 'does not fit the detector of the config')


def test_pictures_are_prepared_in_one_way(pair, hook, tmp_path):
    cfg = pair[1]
    for name, value, words in (
        ('mean', [1.0, 2.0, 3.0], r'data_preprocessor mean = \[1\.0, 2\.0, 3\.0\], and \['),
        ('std', [1.0, 2.0, 3.0], r'data_preprocessor std = \[1\.0, 2\.0, 3\.0\], and \['),
        ('bgr_to_rgb', not cfg.model.data_preprocessor.bgr_to_rgb, 'data_preprocessor bgr_to_rgb = (True|False), and '),
    ):
        other = copy.deepcopy(cfg)
        other.model.data_preprocessor[name] = value
        refused(hook(), build_detector(other), ValueError, f'{words}.* it gets the batch of the model')


def test_backbones_that_are_not_ours(pair, hook, tmp_path):
    cfg = copy.deepcopy(pair[0])
    cfg.model.backbone = dict(type='ResNet', depth=18)
    Config(cfg.to_dict()).dump(tmp_path / 'resnet.py')
    refused(hook(config=str(tmp_path / 'resnet.py')), build_detector(pair[1]), ValueError, "'ResNet': cannot be pruned")


def test_maps_of_other_widths(pair, hook, training):
    cfg = training('wide', hook())
    cfg.model.neck.out_channels = cfg.model.bbox_head.in_channels = 16
    cfg.load_from = None
    model, batch = started(build_runner(cfg, ('train',)))
    with pytest.raises(ValueError, match=r'the heads read maps .* of 16x8x8, .*, and in the dense detector of '):
        model(**batch, mode='loss')
