"""What the backbones promise to whoever trains them: each test runs for all families."""

import copy
import pickle

import pytest
import torch
from mmengine.config import ConfigDict
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from upvit_mm.arch import ArchSpec
from upvit_mm.arch.family import FAMILIES
from upvit_mm.arch.spec import BLOCK_FIELDS
from upvit_mm.models import build_backbone


@pytest.fixture(params=list(FAMILIES))
def family(request) -> str:
    return request.param


def loss_of(outs) -> torch.Tensor:
    return sum(out.float().square().mean() for out in outs)


def gradients(model, x) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss_of(model(x)).backward()
    return {n.removeprefix('module.'): p.grad for n, p in model.named_parameters()}


def furthest(a, b, distance) -> float:
    assert a.keys() == b.keys()
    return max(distance(a[k], b[k]) for k in a)


# ---------------------------------------------------------------- construction


def test_arch_may_be_a_mapping_a_config_a_path_or_a_spec(family, build, tiny_arch, tmp_path):
    spec = ArchSpec.from_dict(tiny_arch(family))
    path = str(spec.save_json(tmp_path / 'arch.json'))
    expected = build(family).state_dict()
    for arch in (spec, path, ConfigDict(tiny_arch(family)), spec.to_dict()):
        backbone = build(family, arch)
        assert backbone.arch == spec
        assert all(torch.equal(v, expected[k]) for k, v in backbone.state_dict().items())


def test_every_width_of_the_arch_is_built(family, build):
    backbone = build(family)
    arch = backbone.arch
    for i, stage in enumerate(backbone.stages):
        assert len(stage.blocks) == arch.depths[i]
        for j, block in enumerate(stage.blocks):
            attn, mlp = block.attn, block.mlp
            embed, qk, v = arch.embed_dims[i], arch.qk_dims[i][j], arch.v_dims[i][j]
            shapes = [tuple(m.weight.shape) for m in (attn.q, attn.k, attn.v, attn.proj, mlp.fc1, mlp.fc2)]
            hidden = arch.mlp_hidden_dims[i][j]
            assert shapes == [(qk, embed), (qk, embed), (v, embed), (embed, v), (hidden, embed), (embed, hidden)]
            assert (attn.num_heads, attn.scale) == (arch.num_heads[i][j], arch.qk_scales[i][j])


@pytest.mark.parametrize('channels', [1, 4, 6])
def test_other_numbers_of_image_channels(family, build, tiny_arch, image, channels):
    backbone = build(family, tiny_arch(family, in_channels=channels))
    assert all(torch.isfinite(o).all() for o in backbone(image(64, 64, channels=channels)))
    with pytest.raises(ValueError, match=rf'image with 2 channels: the arch has in_channels = {channels}'):
        backbone(image(64, 64, channels=2))


def test_fresh_weights_are_those_of_the_authors(family, build, tiny_arch):
    torch.manual_seed(0)
    backbone = build_backbone(ArchSpec.from_dict(tiny_arch(family, mlp_hidden_dims=400)))
    for module in backbone.modules():
        if isinstance(module, nn.Linear):
            assert module.bias is None or not module.bias.any()
            if module.weight.numel() > 5000:
                assert module.weight.std().item() == pytest.approx(0.02, rel=0.05)
        elif isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
        elif isinstance(module, nn.Conv2d) and family == 'pvtv2' and module.weight.numel() > 2000:
            fan_out = module.weight[0, 0].numel() * module.out_channels / module.groups
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)
    if family == 'deit':
        assert backbone.pos_embed.std().item() == pytest.approx(0.02, rel=0.1)


def test_norm_eval_is_ignored_with_a_warning(family, build, image):
    with pytest.warns(UserWarning, match='norm_eval=True is ignored: .*LayerNorm only'):
        backbone = build(family, norm_eval=True)
    x = image(64, 64)
    assert all(torch.equal(a, b) for a, b in zip(backbone.train()(x), build(family)(x)))


def test_drop_path_rises_linearly_over_all_blocks(family, build):
    blocks = [b for stage in build(family, drop_path_rate=0.2).stages for b in stage.blocks]
    rates = [getattr(b.drop_path, 'drop_prob', 0.0) for b in blocks]
    assert rates == pytest.approx([0.2 * k / (len(blocks) - 1) for k in range(len(blocks))])


# --------------------------------------------------------------------- running


def test_images_of_a_batch_do_not_mix(family, build, image, distance):
    backbone, x = build(family).double(), image(80, 72, batch=3).double()
    for k in range(3):
        assert all(distance(a, b[k : k + 1]) < 1e-13 for a, b in zip(backbone(x[k : k + 1]), backbone(x)))


def test_inference_equals_training_mode_and_spares_the_image(family, build, image, distance):
    """Without gradients other kernels run, some in place."""
    backbone, x = build(family), image(80, 72)
    before, expected = x.clone(), backbone.train()(x)
    backbone.eval()
    for no_gradients in (torch.no_grad, torch.inference_mode):
        with no_gradients():
            for _ in range(2):
                assert all(distance(a, b) < 1e-5 for a, b in zip(backbone(x), expected))
    assert torch.equal(x, before)


def test_maps_lie_in_plain_memory(family, build, image):
    """mmcv's operators read a channels-last map as if it were NCHW, see ``layers/grid.py``."""
    x = image(64, 80)
    for batch in (x, x[:1], x.to(memory_format=torch.channels_last)):
        with torch.no_grad():
            assert all(o.is_contiguous() for o in build(family)(batch))


def test_channels_last_image(family, build, image, distance):
    backbone, x = build(family), image(80, 72)
    outs = backbone(x.to(memory_format=torch.channels_last))
    assert all(distance(a, b) < 1e-5 for a, b in zip(outs, backbone(x)))


@pytest.mark.parametrize('frozen_stages', [-1, 1])
def test_with_cp_keeps_results_and_gradients(family, build, image, distance, frozen_stages):
    x, settings = image(64, 64), dict(frozen_stages=frozen_stages)
    plain, checkpointed = (build(family, with_cp=cp, **settings).double().train() for cp in (False, True))
    trained = {n for n, p in plain.named_parameters() if p.requires_grad}
    a, b = ({k: v for k, v in gradients(m, x.double()).items() if k in trained} for m in (checkpointed, plain))
    assert furthest(a, b, distance) < 1e-12
    assert all(torch.equal(o, p) for o, p in zip(checkpointed(x.double()), plain(x.double())))


def test_with_cp_keeps_fewer_activations(family, build, image):
    def kept(with_cp):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            build(family, with_cp=with_cp).train()(image(96, 96))
        return sum(sizes)

    assert kept(True) < 0.6 * kept(False)


def test_bfloat16_autocast(family, build, image, distance):
    backbone, x = build(family), image(80, 72)
    expected = backbone(x)
    with torch.autocast('cpu', torch.bfloat16):
        outs = backbone(x)
        with torch.no_grad():
            without_gradients = backbone(x)
    assert all(distance(a.float(), b) < 0.1 for a, b in zip(outs, expected))
    assert all(distance(a.float(), b) < 0.1 for a, b in zip(without_gradients, expected))
    loss_of(outs).backward()
    assert all(torch.isfinite(p.grad).all() for p in backbone.parameters() if p.grad is not None)


def shallow(arch: dict) -> dict:
    """The first two blocks of one stage, or the first block of each of several."""
    depth = 2 if len(arch['depths']) == 1 else 1
    per_block = {key: [blocks[:depth] for blocks in value] for key, value in arch.items() if key in BLOCK_FIELDS}
    return arch | per_block | {'depths': [depth] * len(arch['depths'])}


@pytest.mark.parametrize(
    ('family', 'settings'),
    [('pvtv2', {}), ('deit', {}), ('deit', dict(window_size=2, global_blocks=(1,)))],
    ids=['pvtv2', 'deit', 'windowed'],
)
def test_compiled_without_a_graph_break(family, settings, tiny_arch, build, image, distance):
    backbone, x = build(family, shallow(tiny_arch(family)), **settings).double().train(), image(80, 72).double()
    compiled = torch.compile(backbone, backend='aot_eager', fullgraph=True)
    assert all(distance(a, b) < 1e-12 for a, b in zip(compiled(x), backbone(x)))
    expected = gradients(backbone, x)
    actual = {k.removeprefix('_orig_mod.'): v for k, v in gradients(compiled, x).items()}
    largest = max(gradient.abs().max() for gradient in expected.values())  # those of key biases are rounding alone
    assert all((actual[name] - expected[name]).abs().max() < 1e-10 * largest for name in expected)
    with torch.no_grad():
        assert all(distance(a, b) < 1e-12 for a, b in zip(compiled(x), backbone(x)))


@pytest.fixture
def one_process(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / 'store'), 1)
    torch.distributed.init_process_group('gloo', store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures('one_process')
@pytest.mark.parametrize(
    'settings', [{}, dict(frozen_stages=1), dict(with_cp=True)], ids=['plain', 'frozen', 'with_cp']
)
def test_distributed_wrapper_uses_every_parameter(family, build, image, distance, settings):
    """DDP raises in the second step when a parameter took no part in the first."""
    backbone, x = build(family, **settings).train(), image(64, 64)
    expected = {k: v for k, v in gradients(copy.deepcopy(backbone), x).items() if v is not None}
    wrapped = DistributedDataParallel(backbone)
    for _ in range(2):
        actual = {k: v for k, v in gradients(wrapped, x).items() if v is not None}
        assert furthest(actual, expected, distance) < 1e-5


# -------------------------------------------------------------------- training


def trained(family, build, image, seed, **settings):
    """A backbone after two steps of AdamW with stochastic depth."""
    torch.manual_seed(seed)
    backbone = build_backbone(build(family).arch, drop_path_rate=0.5, **settings).train()
    optimizer = torch.optim.AdamW([p for p in backbone.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(backbone(image(72, 64, batch=4))).backward()
        optimizer.step()
    return backbone.state_dict()


def test_same_seed_same_weights_bit_for_bit(family, build, image):
    first, second, other = (trained(family, build, image, seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not any(torch.equal(first[k], other[k]) for k in first if k.endswith('proj.weight'))


def test_same_seed_same_weights_when_recomputing(family, build, image, distance):
    """Recomputation draws the same stochastic depth as the first pass."""
    first, second = (trained(family, build, image, 0, with_cp=cp) for cp in (False, True))
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_frozen_weights_stay_and_the_others_move(family, build, image):
    backbone = build(family, frozen_stages=1, drop_path_rate=0.3).train()
    frozen = {n for n, p in backbone.named_parameters() if not p.requires_grad}
    before = copy.deepcopy(backbone.state_dict())
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=1e-2, weight_decay=0.1)
    loss_of(backbone(image(64, 64))).backward()
    optimizer.step()
    assert {n for n, p in backbone.named_parameters() if torch.equal(p, before[n])} == frozen
    assert all(torch.equal(b, before[n]) for n, b in backbone.named_buffers())
    assert 0 < len(frozen) < len(before)


def test_copy_and_pickle_give_the_same_network(family, build, image):
    backbone, x = build(family), image(80, 72)
    with torch.no_grad():
        expected = backbone(x)
        for other in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
            assert all(torch.equal(a, b) for a, b in zip(other(x), expected))


# ------------------------------------------------------ layer-wise learning rate


def test_layer_depth(family, build):
    backbone = build(family)
    depths = {n: backbone.get_layer_depth(f'backbone.{n}', 'backbone.') for n in backbone.state_dict()}
    blocks = sum(backbone.arch.depths)
    assert {count for _, count in depths.values()} == {blocks + 2}
    assert {d for d, _ in depths.values()} == set(range(blocks + 1))
    assert backbone.get_layer_depth('neck.weight', 'backbone.') == (blocks + 1, blocks + 2)
    vit = {
        'cls_token': 0,
        'stages.0.patch_embed.proj.bias': 0,
        'stages.0.blocks.0.norm1.weight': 1,
        'stages.0.blocks.4.mlp.fc2.bias': 5,
        'stages.0.norm.weight': 5,
    }
    expected = {
        'dinov2': vit | {'pos_embed': 0, 'reg_token': 0, 'stages.0.blocks.2.mlp.gate.weight': 3},
        'dinov3': vit | {'reg_token': 0, 'stages.0.blocks.2.attn.rotary.frequencies': 3},
        'deit': vit | {'pos_embed': 0},
        'pvtv2': {  # depths 1, 2, 2, 1
            'stages.0.patch_embed.norm.bias': 0,
            'stages.0.blocks.0.attn.sr.weight': 1,
            'stages.0.norm.weight': 1,
            'stages.1.patch_embed.proj.weight': 2,
            'stages.1.blocks.0.attn.q.weight': 2,
            'stages.2.blocks.1.mlp.dwconv.bias': 5,
            'stages.2.norm.bias': 5,
            'stages.3.patch_embed.proj.weight': 6,
            'stages.3.blocks.0.norm2.weight': 6,
        },
    }[family]
    assert {n: depths[n][0] for n in expected} == expected


# ------------------------------------------------------------------------- gpu


@pytest.fixture
def cuda():
    if not torch.cuda.is_available():
        pytest.skip('needs a CUDA device')
    return torch.device('cuda')


@pytest.mark.gpu
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_gpu_autocast(cuda, family, build, image, distance, dtype):
    backbone, x = build(family).to(cuda), image(96, 80).to(cuda)
    expected = backbone(x)
    with torch.autocast('cuda', dtype):
        outs = backbone(x)
    assert all(distance(a.float(), b) < 0.1 for a, b in zip(outs, expected))
    loss_of(outs).backward()
    assert all(torch.isfinite(p.grad).all() for p in backbone.parameters() if p.grad is not None)


@pytest.mark.gpu
def test_gpu_equals_cpu_and_channels_last(cuda, family, build, image, distance):
    backbone, x = build(family).double(), image(96, 80).double()
    expected = backbone(x)
    backbone.to(cuda)
    for layout in (torch.contiguous_format, torch.channels_last):
        outs = backbone(x.to(cuda).to(memory_format=layout))
        assert all(distance(a.cpu(), b) < 1e-10 for a, b in zip(outs, expected))
