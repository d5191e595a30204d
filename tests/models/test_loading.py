"""Checkpoints into models: through ``init_cfg``, ``prefix=`` and ``load_from``, right ones and wrong ones."""

import pytest
import torch
from mmengine.runner import Runner, load_checkpoint
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from torch import nn
from torch.utils.data import Dataset

from upvit_mm.checkpoints import load_backbone, load_classifier, save_checkpoint, to_ours


def prefixed(prefix, state):
    return {f'{prefix}{k}': v for k, v in state.items()}


def doubled(state):
    """As a network in float64 holds it: a DINOv3's frequencies are read in float32."""
    return {k: v.double() for k, v in state.items()}


# ----------------------------------------------------------------- right files


@pytest.mark.parametrize(
    'wrap', [lambda s: s, lambda s: {'model': s}, lambda s: {'state_dict': prefixed('backbone.', s)}]
)
def test_init_cfg_takes_any_layout(source, wrap, build, stock_arch, tmp_path, identical):
    torch.save(wrap(source.state), tmp_path / 'x.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'x.pth'))
    backbone = build(source.family, stock_arch(source.family), init_cfg=init_cfg).double()
    backbone.init_weights()
    assert identical(backbone.state_dict(), doubled(to_ours(source.state)))


def test_init_cfg_takes_our_own_file(family, build, tmp_path, identical):
    expected = build(family, seed=5).state_dict()
    path = save_checkpoint(tmp_path / 'x.pth', prefixed('backbone.', expected))
    backbone = build(family, init_cfg=dict(type='Pretrained', checkpoint=str(path), prefix='backbone.'))
    assert not identical(backbone.state_dict(), expected)
    backbone.init_weights()
    assert identical(backbone.state_dict(), expected)


def test_init_cfg_beside_other_rules(family, build, tmp_path, identical):
    """As in mmengine, a checkpoint has the last word."""
    expected = build(family, seed=5).state_dict()
    path = save_checkpoint(tmp_path / 'x.pth', expected)
    rules = [dict(type='Pretrained', checkpoint=str(path)), dict(type='Constant', layer='LayerNorm', val=3.0)]
    backbone = build(family, init_cfg=rules[1:])
    backbone.init_weights()
    assert (backbone.stages[0].norm.weight == 3).all()
    backbone = build(family, init_cfg=rules)
    backbone.init_weights()
    assert identical(backbone.state_dict(), expected)
    assert backbone.init_cfg == rules


def test_second_init_does_not_load_again(family, build, tmp_path):
    path = save_checkpoint(tmp_path / 'x.pth', build(family, seed=5).state_dict())
    backbone = build(family, init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    backbone.init_weights()
    nn.init.zeros_(backbone.stages[0].norm.bias)
    backbone.init_weights()
    assert not backbone.stages[0].norm.bias.any()


def test_missing_file(family, build):
    backbone = build(family, init_cfg=dict(type='Pretrained', checkpoint='gone.pth'))
    with pytest.raises(FileNotFoundError, match=r"'gone.pth' does not exist"):
        backbone.init_weights()


def test_detector_loads_a_backbone_of_any_layout(source, detector, stock_arch, tmp_path, identical):
    torch.save({'model': source.state}, tmp_path / 'x.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'x.pth'))
    model = detector(source.family, stock_arch(source.family), init_cfg=init_cfg).double()
    model.init_weights()
    assert identical(model.backbone.state_dict(), doubled(to_ours(source.state)))


def test_load_from_takes_a_backbone_of_any_layout(source, detector, stock_arch, tmp_path, identical):
    model = detector(source.family, stock_arch(source.family)).double()
    state = model.state_dict()
    others = {k: v + 1 for k, v in state.items() if not k.startswith('backbone.')}
    torch.save({'state_dict': prefixed('backbone.', source.state) | others}, tmp_path / 'x.pth')
    load_checkpoint(model, str(tmp_path / 'x.pth'), map_location='cpu')
    assert identical(model.backbone.state_dict(), doubled(to_ours(source.state)))
    assert all(torch.equal(model.state_dict()[k], v) for k, v in others.items())


def test_load_from_a_whole_detector(family, detector, tiny_arch, randomise, tmp_path, identical):
    source, target = (randomise(detector(family, tiny_arch(family)), seed) for seed in (0, 1))
    path = save_checkpoint(tmp_path / 'x.pth', source.state_dict())
    load_checkpoint(target, str(path), map_location='cpu')
    assert identical(target.state_dict(), source.state_dict())


@pytest.mark.parametrize('name', ['timm-deit', 'timm-pvtv2'])
def test_classifier_gives_timms_logits(name, tiny_source, classifier, stock_arch, image, distance, tmp_path):
    source = tiny_source(name)
    torch.save(source.state | source.head, tmp_path / 'x.pth')
    model = classifier(source.family, stock_arch(source.family)).double().eval()
    model.load_state_dict(load_classifier(tmp_path / 'x.pth'))
    x = image(64, 64).double()
    with torch.no_grad():
        assert distance(model.head(model.extract_feat(x)), source.model(x)) < 1e-10


@pytest.mark.parametrize(('weights', 'taken'), [(None, 1), ('ema', 1), ('raw', 0)])
def test_init_cfg_chooses_averages_or_raw_weights(
    weights, taken, family, build, detector, tiny_arch, tmp_path, identical
):
    states = [build(family, seed=seed).state_dict() for seed in (5, 6)]
    torch.save({'state_dict': states[0], 'state_dict_ema': states[1]}, tmp_path / 'x.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'x.pth')) | ({'weights': weights} if weights else {})
    model = detector(family, tiny_arch(family), init_cfg=init_cfg)
    model.init_weights()
    assert identical(model.backbone.state_dict(), states[taken])


# ----------------------------------------------------------------- wrong files

CHANGES = {  # how to spoil a state dict, and what is to be said of each key
    'missing': (
        lambda state, keys: {k: v for k, v in state.items() if k not in keys},
        lambda state, key: f'{key} is missing',
    ),
    'extra': (
        lambda state, keys: state | {f'{k}_new': state[k] for k in keys},
        lambda state, key: f'{key}_new is not in the model',
    ),
    'mis-shaped': (
        lambda state, keys: state | {k: torch.ones(2, 3) for k in keys},
        lambda state, key: f'{key} has shape (2, 3), the model {tuple(state[key].shape)}',
    ),
}


def through_init_cfg(state, model, path):
    torch.save(state, path)
    model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(path))
    model.init_weights()


def through_prefix(state, model, path):
    torch.save({'state_dict': prefixed('student.', state) | prefixed('backbone.', {'x': torch.ones(1)})}, path)
    model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(path), prefix='student.')
    model.init_weights()


def through_load_from(state, model, path):
    others = {k: v for k, v in model.state_dict().items() if not k.startswith('backbone.')}
    torch.save({'state_dict': prefixed('backbone.', state) | others}, path)
    load_checkpoint(model, str(path), map_location='cpu')


@pytest.mark.parametrize('way', [through_init_cfg, through_prefix, through_load_from])
@pytest.mark.parametrize('change', CHANGES)
def test_wrong_tensors_raise_with_the_first_five_and_the_count(
    family, change, way, detector, build, tiny_arch, tmp_path
):
    state = build(family).state_dict()
    keys = [k for k in state if k.endswith(('attn.k.weight', 'fc2.bias', 'norm2.bias'))][:7]
    spoil, describe = CHANGES[change]
    with pytest.raises(ValueError, match=rf'=tiny-{family}\): 7 tensors .*the model has {len(state)}\)') as info:
        way(spoil(state, keys), detector(family, tiny_arch(family)), tmp_path / 'x.pth')
    assert f'{"; ".join(describe(state, key) for key in keys[:5])}; ...' in str(info.value)
    assert keys[5] not in str(info.value)


@pytest.mark.parametrize('way', [through_init_cfg, through_prefix, through_load_from])
def test_checkpoint_of_another_width(family, way, detector, build, tiny_arch, tmp_path):
    wider = build(family, tiny_arch(family, mlp_hidden_dims=77)).state_dict()
    with pytest.raises(ValueError, match=r'fc1.weight has shape \(77, \d+\), the model .*Use the arch.json'):
        way(wider, detector(family, tiny_arch(family)), tmp_path / 'x.pth')


@pytest.mark.parametrize('way', [through_init_cfg, through_prefix, through_load_from])
def test_checkpoint_of_another_family(family, way, detector, tiny_source, tiny_arch, tmp_path):
    other = tiny_source('timm-deit' if family == 'pvtv2' else 'timm-pvtv2').state
    with pytest.raises(ValueError, match=rf'checkpoint does not fit UP\w+\(arch=tiny-{family}\)'):
        way(other, detector(family, tiny_arch(family)), tmp_path / 'x.pth')


def test_checkpoint_of_a_variant(build, stock_arch, timm_source, tmp_path):
    """PVTv2-B2-Li pools before its spatial reduction and is not built here."""
    widths = dict(embed_dims=(16, 32, 80, 128), num_heads=(1, 2, 5, 8), depths=(1, 1, 2, 1))
    torch.save(timm_source(PyramidVisionTransformerV2(linear=True, **widths)).state, tmp_path / 'x.pth')
    backbone = build('pvtv2', stock_arch('pvtv2'), init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'x.pth')))
    with pytest.raises(ValueError, match=r'stages.0.blocks.0.attn.sr.weight has shape \(16, 16, 1, 1\), the model'):
        backbone.init_weights()


def test_a_network_of_other_scales_is_refused(family, build, tiny_arch, tmp_path):
    """Trained from scratch with the usual scales, under the arch.json of a pruned network of the same widths."""
    usual = build(family, tiny_arch(family, qk_scales=None))
    path = save_checkpoint(tmp_path / 'x.pth', usual.state_dict(), arch=usual.arch.to_dict())
    init_cfg = dict(type='Pretrained', checkpoint=str(path))
    for prefix in ({}, dict(prefix='')):
        with pytest.raises(
            ValueError, match=rf'another network than arch tiny-{family}: qk_scales\[0\]\[0\] = 0\.3\d+ in'
        ):
            build(family, init_cfg=init_cfg | prefix).init_weights()
    build(family, usual.arch.to_dict(), init_cfg=init_cfg).init_weights()


def test_a_network_of_larger_images_names_its_size(build, stock_arch, tmp_path):
    path = tmp_path / 'x.pth'
    torch.save(build('deit', stock_arch('deit', img_size=96)).state_dict(), path)
    init_cfg = dict(type='Pretrained', checkpoint=str(path))
    with pytest.raises(ValueError, match=r'trained at 96 px \(6x6 patches of 16 px\): set img_size=96 in the arch'):
        build('deit', stock_arch('deit'), init_cfg=init_cfg).init_weights()
    build('deit', stock_arch('deit', img_size=96), init_cfg=init_cfg).init_weights()


def test_load_from_a_bare_backbone_asks_for_the_prefix(detector, tiny_source, stock_arch, tmp_path):
    torch.save(tiny_source('timm-pvtv2').state, tmp_path / 'x.pth')
    with pytest.raises(ValueError, match=r'is missing; .*is its prefix right\?'):
        load_checkpoint(detector('pvtv2', stock_arch('pvtv2')), str(tmp_path / 'x.pth'))


def test_wrong_checkpoint_leaves_the_weights_alone(family, build, identical):
    backbone = build(family)
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    state = build(family, seed=5).state_dict()
    del state['stages.0.norm.bias']
    for strict in (True, False):
        with pytest.raises(ValueError, match=r'the model has \d+\): stages.0.norm.bias is missing\. Use'):
            backbone.load_state_dict(state, strict=strict)
    assert identical(backbone.state_dict(), before)


# ------------------------------------------------------- a file of a real run


class Images(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        from mmpretrain.structures import DataSample

        generator = torch.Generator().manual_seed(index)
        pixels = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8, generator=generator)
        return dict(inputs=pixels, data_samples=DataSample().set_gt_label(index))


def test_file_of_an_mmengine_run_with_ema(family, classifier, build, tiny_arch, tmp_path, identical):
    """Such a file holds loss histories, optimizer, schedulers; its ``state_dict`` has the averaged weights."""
    runner = Runner(
        classifier(family, tiny_arch(family)),
        str(tmp_path),
        train_dataloader=dict(
            dataset=Images(), batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False)
        ),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.01)),
        param_scheduler=dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=2),
        custom_hooks=[dict(type='EMAHook', momentum=0.3)],
        default_scope='mmpretrain',
        experiment_name=f'run_{family}',
        randomness=dict(seed=0),
        log_level='ERROR',
    )
    runner.train()
    path = tmp_path / 'epoch_1.pth'
    averaged = next(h for h in runner.hooks if type(h).__name__ == 'EMAHook').ema_model.module.state_dict()
    assert not identical(averaged, runner.model.state_dict())
    assert identical(load_classifier(path), averaged)
    assert identical(prefixed('backbone.', load_backbone(path)), {k: v for k, v in averaged.items() if 'head' not in k})
    backbone = build(family, init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    backbone.init_weights()
    assert identical(backbone.state_dict(), load_backbone(path))
