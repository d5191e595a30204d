"""A trained detector pruned in place: from its config and checkpoint to a config and checkpoint that mmdet runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from upvit_mm.arch import ArchSpec
from upvit_mm.compare.contestants import Contestant, with_backbone
from upvit_mm.models.map_repair import repair_readers
from upvit_mm.pruning import PrunePlan, prunable_dims
from upvit_mm.pruning.costs import count_macs
from upvit_mm.pruning.plan import make_plan
from upvit_mm.pruning.score_file import load_scores
from upvit_mm.runner import build_runner, set_training_options
from upvit_mm.workflow.dense_detector import DenseDetector
from upvit_mm.workflow.detector_test import DetectorTest
from upvit_mm.workflow.prune import PruneJob
from upvit_mm.workflow.prune_goal import goal_and_settings
from upvit_mm.workflow.prune_settings import PruneSettings
from upvit_mm.workflow.whole_detector import build_detector, map_outputs

ROOT = Path(__file__).parents[2]
QUICK = dict(num_images=4, round_to=1, draws=1)
CASES = [
    ('pvtv2', 'retinanet'),
    ('deit', 'retinanet'),
    ('dinov2', 'retinanet'),
    ('pvtv2', 'mask-rcnn'),
    ('dinov3', 'mask-rcnn'),
    ('pvtv2', 'deformable-detr'),
]
CUT = {'pvtv2': [8, 12, 16, 17], 'deit': [17], 'dinov2': [17], 'dinov3': [17]}


@pytest.fixture
def dense(detector_config, detector_of, archs, tmp_path):
    """``dense(family, kind)``: the file of a small detector's config, and of its random weights."""

    def make(family: str, kind: str = 'retinanet') -> tuple[Path, Path]:
        cfg = detector_config(family, 'retinanet' if kind == 'deformable-detr' else kind)
        cfg = with_backbone(cfg, Contestant.parse(f'a={archs(family)[0]}'))
        if kind == 'deformable-detr':
            cfg.model = detector_of(kind, **cfg.model.backbone, out_indices=(1, 2, 3)).model
            cfg.model.bbox_head.num_classes = 10
        cfg.dump(tmp_path / 'dense.py')
        torch.manual_seed(0)
        detector = build_detector(cfg)
        detector.init_weights()
        meta = {'dataset_meta': {'classes': cfg.test_dataloader.dataset.metainfo.classes}}
        torch.save({'state_dict': detector.state_dict(), 'meta': meta}, tmp_path / 'dense.pth')
        return tmp_path / 'dense.py', tmp_path / 'dense.pth'

    return make


@pytest.fixture
def job(dense, tmp_path):
    """``job(files, **given)``: a pruning job of a detector in ``out``."""

    def make(files: tuple[Path, Path], **given) -> PruneJob:
        cfg = Config.fromfile(files[0])
        goal, settings = goal_and_settings(cfg, QUICK | given)
        return PruneJob(cfg, str(files[1]), goal, tmp_path / 'out', settings)

    return make


@pytest.mark.parametrize(('family', 'kind'), CASES)
def test_a_detector_becomes_a_smaller_one(family, kind, dense, job, tmp_path):
    files = dense(family, kind)
    cut = CUT[family]
    job_ = job(files, widths={'embed_dims': cut, 'mlp_hidden_dims': 14})
    outcome = job_.run()
    assert list(outcome.held_out) == ['dense', 'sliced', 'compensated']
    out = tmp_path / 'out'
    written = {'arch.json', 'detector.py', 'detector.pth', 'sliced.pth', 'plan.json', 'proxy.txt', 'report.json'}
    assert written | {'detector_distil.py'} < {path.name for path in out.iterdir()}
    assert len((out / 'proxy.txt').read_text().splitlines()) == 4
    arch = ArchSpec.from_json(out / 'arch.json')
    assert list(arch.embed_dims) == cut
    content = torch.load(out / 'detector.pth', weights_only=True)
    assert content['meta']['arch'] == arch.to_dict()
    assert len(content['meta']['dataset_meta']['classes']) == 10

    cfg = Config.fromfile(out / 'detector.py')
    assert cfg.load_from == str(out / 'detector.pth')
    assert not cfg.model.backbone.get('init_cfg')
    assert cfg.arch == cfg.model.backbone.arch == arch.to_dict()
    detector = build_detector(cfg)
    detector.load_state_dict(content['state_dict'])
    again = DetectorTest(tmp_path / 'again', cfg, out / 'detector.pth').metrics()
    assert again == pytest.approx(outcome.held_out['compensated'], abs=1e-6)
    # everything but the backbone and what reads it is the dense detector's
    whole = torch.load(files[1], weights_only=True)['state_dict']
    readers = {slot.tensor for slots in job_.subject.readers.slots.values() for slot in slots}
    changed = {k for k, v in content['state_dict'].items() if v.shape != whole[k].shape or not torch.equal(v, whole[k])}
    assert {k for k in changed if not k.startswith('backbone.')} <= readers | {
        f'{name.rpartition(".")[0]}.bias' for name in readers
    }


def test_a_budget_counts_the_backbone_at_the_size_of_the_test(dense, job, tmp_path):
    job_ = job(dense('pvtv2'), budget='macs=60%', eval_images=0)
    target = job_.run().plan.target_arch
    costs = json.loads((tmp_path / 'out/report.json').read_text())['costs']
    assert list(costs['dense']) == ['macs@64x64', 'params']
    assert costs['dense']['macs@64x64'] == count_macs(job_.source, (64, 64))
    assert 0.59 < count_macs(target, (64, 64)) / count_macs(job_.source, (64, 64)) <= 0.6
    assert job_.settings.compensate
    assert job_.settings.non_uniform


def test_windows_are_those_of_the_detector(dense, job):
    job_ = job(dense('deit'), budget='macs=60%@128x128', eval_images=0)
    windows = job_.dense.backbone.windows
    assert windows.size == 8
    assert job_.costs(job_.source)['dense'] == {
        'macs@64x64': count_macs(job_.source, (64, 64), windows=windows),
        'macs@128x128': count_macs(job_.source, (128, 128), windows=windows),
        'params': sum(p.numel() for p in job_.dense.backbone.parameters()),
    }


def test_a_part_of_the_test_set_is_judged_as_a_smaller_set(dense, tmp_path):
    """CocoMetric counts the objects of all pictures of its file as missed."""
    config, checkpoint = dense('pvtv2')
    cfg = Config.fromfile(config)
    cfg.model.test_cfg.score_thr = 0.0
    first = DetectorTest(tmp_path / 'first', cfg, checkpoint, 1).metrics()
    root = Path(cfg.test_dataloader.dataset.data_root)
    content = json.loads((root / 'annotations/instances_val.json').read_text())
    content['images'] = content['images'][:1]
    one = content['images'][0]['id']
    content['annotations'] = [entry for entry in content['annotations'] if entry['image_id'] == one]
    (tmp_path / 'one.json').write_text(json.dumps(content))
    cfg.test_dataloader.dataset.ann_file = cfg.test_evaluator.ann_file = str(tmp_path / 'one.json')
    assert first == pytest.approx(DetectorTest(tmp_path / 'small', cfg, checkpoint).metrics(), abs=1e-9)


def test_what_is_done_is_not_done_again(dense, job, tmp_path):
    files = dense('pvtv2')
    job(files, widths={'mlp_hidden_dims': 14}).run()
    out = tmp_path / 'out'
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob('*.p*') if path.is_file()}
    second = job(files, widths={'mlp_hidden_dims': 14})
    second.run()
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert 'proxy' not in vars(second.images)
    job(files, widths={'mlp_hidden_dims': 13}).run()
    assert (out / 'test/dense/metrics.json').stat().st_mtime_ns < (out / 'report.json').stat().st_mtime_ns
    assert (out / 'detector.pth').stat().st_mtime_ns > stamps[out / 'detector.pth']


def test_a_stock_backbone_is_replaced_by_ours(dense, job, mmdet_source, tmp_path):
    """mmdet's PVTv2 has another eps in some norms, so its maps are equal to a few digits."""
    config, _ = dense('pvtv2')
    cfg = Config.fromfile(config)
    cfg.model.backbone = dict(
        _delete_=True, type='PyramidVisionTransformerV2', embed_dims=8, num_layers=[1, 1, 1, 1], num_heads=[1, 2, 4, 5]
    )
    cfg.model.neck.in_channels = [8, 16, 32, 40]
    cfg = Config(cfg.to_dict())
    cfg.model.backbone.pop('_delete_')
    cfg.dump(tmp_path / 'stock.py')
    theirs = build_detector(cfg)
    theirs.init_weights()
    torch.save({'state_dict': theirs.state_dict()}, tmp_path / 'stock.pth')
    job_ = job((tmp_path / 'stock.py', tmp_path / 'stock.pth'), widths={'embed_dims': [8, 16, 32, 33]}, eval_images=0)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for a, b in zip(map_outputs(theirs.eval(), x), map_outputs(job_.subject.detector, x)):
            torch.testing.assert_close(a, b, rtol=0, atol=2e-3 * b.abs().max().item())
    plan = job_.run().plan
    made = Config.fromfile(tmp_path / 'out/detector.py')
    assert made.model.backbone.type == 'upvit_mm.UPPVTv2'
    assert made.model.neck.in_channels == [8, 16, 32, 33] == list(plan.target_arch.embed_dims)
    build_detector(made).load_state_dict(torch.load(tmp_path / 'out/detector.pth', weights_only=True)['state_dict'])


def test_a_changed_test_is_judged_anew_and_nothing_else(dense, tmp_path):
    config, checkpoint = dense('pvtv2')
    goal, settings = goal_and_settings(Config.fromfile(config), QUICK | {'widths': {'mlp_hidden_dims': 14}})
    out, counts, stamps = tmp_path / 'out', [], []
    for most in (50, 1):
        cfg = Config.fromfile(config)
        cfg.merge_from_dict({'model.test_cfg.max_per_img': most, 'model.test_cfg.score_thr': 0.0})
        cfg.test_evaluator.outfile_prefix = str(tmp_path / 'mine/found')
        PruneJob(cfg, str(checkpoint), goal, out, settings).run()
        counts.append(len(json.loads((out / 'test/compensated/test/found.bbox.json').read_text())))
        assert Config.fromfile(out / 'detector.py').model.test_cfg.max_per_img == most
        stamps.append([(out / name).stat().st_mtime_ns for name in ('detector.pth', 'scores.pt', 'plan.json')])
    assert counts[0] > counts[1] > 0
    assert stamps[0] == stamps[1]
    assert not (tmp_path / 'mine').exists()  # each network has its own file


def test_a_preprocessor_beside_the_model(dense, job, tmp_path):
    """mmengine's runner gives it to the model."""
    config, checkpoint = dense('pvtv2')
    cfg = Config.fromfile(config)
    cfg.data_preprocessor = cfg.model.pop('data_preprocessor')
    cfg.data_preprocessor.mean = [10.0, 20.0, 30.0]
    cfg.dump(config)
    job_ = job((config, checkpoint), widths={'mlp_hidden_dims': 14}, eval_images=0)
    job_.run()
    assert job_.subject.detector.data_preprocessor.mean.flatten().tolist() == [10, 20, 30]
    made = with_backbone(Config.fromfile(config), Contestant.parse(f'a={tmp_path}/out/detector.py,{checkpoint}'))
    assert made.model.data_preprocessor.mean == [10, 20, 30]


@pytest.mark.parametrize(('family', 'kind'), [case for case in CASES if case[0] != 'dinov3'])
def test_the_dense_detector_as_teacher(family, kind, dense, job, tmp_path):
    """``detector_distil.py`` trains and resumes; its checkpoints are those of ``detector.py``."""
    config, checkpoint = dense(family, kind)
    job((config, checkpoint), widths={'embed_dims': CUT[family]}, eval_images=0).run()
    out = tmp_path / 'out'
    plain, cfg = (Config.fromfile(out / name) for name in ('detector.py', 'detector_distil.py'))
    (*others, follow) = cfg.pop('custom_hooks')
    assert others == plain.pop('custom_hooks')
    assert (cfg.pop('work_dir'), plain.pop('work_dir')) == (str(out / 'distilled'), str(out / 'trained'))
    assert cfg.to_dict() == plain.to_dict()
    assert follow.type == 'upvit_mm.FollowDense'
    assert Path(follow.config).resolve() == config
    assert Path(follow.checkpoint).resolve() == checkpoint
    for epochs in (1, 2):
        cfg = Config.fromfile(out / 'detector_distil.py')
        cfg.update(work_dir=str(tmp_path / 'more'), launcher='none', experiment_name=f'{tmp_path.name}_{epochs}')
        cfg.train_cfg.update(max_epochs=epochs, val_interval=9)
        set_training_options(cfg, amp=False, auto_scale_lr=False, resume='auto' if epochs == 2 else None)
        runner = build_runner(cfg, ('train',))
        runner.train()
    values = runner.message_hub.get_scalar('train/loss_tokens').data[0]
    assert len(values) == 4  # two steps an epoch, and the second run goes on after the first
    assert min(values) > 0
    state = torch.load(tmp_path / 'more/epoch_2.pth', weights_only=False)['state_dict']
    build_detector(plain).load_state_dict(state)


def test_heads_that_read_narrower_maps_have_no_teacher(detector_of, archs, tmp_path):
    """Mask2Former has no neck: its maps can be compared only if their widths stay."""
    wide, narrow = (ArchSpec.from_json(path) for path in archs('pvtv2'))
    cfg = detector_of('mask2former', type='upvit_mm.UPPVTv2', arch=wide.to_dict())
    cfg.dump(tmp_path / 'dense.py')
    torch.save({'state_dict': build_detector(cfg).state_dict()}, tmp_path / 'dense.pth')
    subject = DenseDetector(Config.fromfile(tmp_path / 'dense.py'), str(tmp_path / 'dense.pth'))
    for dims, written in (({'mlp_hidden_dims': 14}, True), ({'embed_dims': list(narrow.embed_dims)}, False)):
        target = wide.with_widths(dims)
        kept = {
            n: torch.arange(d.size) for n, d in prunable_dims(target).items() if d.size != prunable_dims(wide)[n].size
        }
        files = subject.write_config(tmp_path, make_plan(wide, kept))
        assert ('detector_distil.py' in files) == (tmp_path / 'detector_distil.py').is_file() == written
        assert len(subject.next_steps(tmp_path)) == 2 + written


def test_repair_brings_back_a_lost_lateral(dense, tmp_path):
    """With an uncut backbone the solution is the dense layer."""
    config, checkpoint = dense('pvtv2')
    subject = DenseDetector(Config.fromfile(config), str(checkpoint))
    pruned = build_detector(subject.cfg)
    pruned.load_state_dict(subject.state)
    layer = 'neck.lateral_convs.1.conv'
    pruned.get_submodule(layer).weight.data.zero_()
    images = subject.images(PruneSettings(num_images=4), None).proxy
    left = repair_readers(subject.detector, pruned, [f'{layer}.weight'], images, map_outputs, 1e-9)
    assert left[layer] < 1e-3
    with torch.no_grad():
        wanted, found = (map_outputs(net, images[0].images)[0] for net in (subject.detector, pruned))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-3 * wanted.abs().max().item())


def test_the_tool(dense, run, tmp_path):
    config, checkpoint = dense('pvtv2')
    words = [sys.executable, str(ROOT / 'tools/prune.py'), str(config), str(checkpoint), '--work-dir', 'out']
    output = run([*words, '--budget', 'macs=60%', '--num-images', '4', '--round-to', '1', '--eval-images', '1'])
    for name in ('dense', 'sliced', 'compensated'):
        assert f'{name}: bbox_mAP ' in output
    assert 'go on: python tools/train.py out/detector.py' in output
    teacher = 'python tools/train.py out/detector_distil.py'
    assert f'or with the dense detector as teacher: {teacher}' in output
    assert f'{teacher}  # or with the dense detector as teacher' in (tmp_path / 'out/report.md').read_text()
    assert PrunePlan.load(tmp_path / 'out/plan.json').meta['costs']['dense']
    assert 'tools/prune.py ' in json.loads((tmp_path / 'out/report.json').read_text())['command']
    train = [sys.executable, str(ROOT / 'tools/train.py'), 'out/detector.py', '--work-dir', 'more']
    assert 'Load checkpoint from' in run(train)
    assert torch.load(tmp_path / 'more/epoch_1.pth', weights_only=False)['meta']['arch']['embed_dims']


def test_scores_by_the_loss_of_the_detector(dense, job, tmp_path):
    """With the labels of the training data, at a size of its own; the test keeps the config's."""
    files, found = dense('pvtv2', 'mask-rcnn'), {}
    for given in ({}, {'size': '96x128'}, {'criterion': 'loss'}):
        job_ = job(files, budget='macs=60%', attention='channels', eval_images=0, compensate=False, **given)
        job_.run()
        found[str(given)] = load_scores(tmp_path / 'out/scores.pt', job_.source)[0]
        assert {batch.images.shape[-2:] for batch in job_.images.proxy} == {(96, 96) if 'size' in given else (64, 64)}
        assert all((batch.samples is not None) == ('criterion' in given) for batch in job_.images.proxy)
    tokens, other_size, loss = found.values()
    for name, values in tokens.items():
        assert not torch.allclose(values, other_size[name], rtol=1e-3, atol=0), name
        assert not torch.allclose(values, loss[name], rtol=1e-3, atol=0), name
        assert loss[name].max() > 0
