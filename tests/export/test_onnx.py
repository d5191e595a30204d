"""ONNX files compute what torch computes, at every size, and none is left that does not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from upvit_mm.arch import ArchSpec
from upvit_mm.export import OPSETS, export, load_part, open_session, result_rows, run_session, write_onnx
from upvit_mm.files import sha256_of
from upvit_mm.pruning import make_plan, prunable_dims, slice_state
from upvit_mm.pruning.costs import count_params
from upvit_mm.version import __version__

pytest.importorskip('onnx', reason='ONNX export needs onnx')
pytest.importorskip('onnxruntime', reason='ONNX export needs onnxruntime')

ROOT = Path(__file__).parents[2]
SIZES = [(96, 64), (80, 112), (107, 77)]  # none of them the traced one, 64x96 (PVTv2) or 32x48 (DeiT)
ODD = (131, 75)


def found(path: Path, images: torch.Tensor) -> list[torch.Tensor]:
    return [torch.from_numpy(array) for array in run_session(open_session(path), images)]


def assert_equal(ours, theirs, distance) -> None:
    assert len(ours) == len(theirs)
    assert max(distance(a, b) for a, b in zip(ours, theirs)) < 1e-5


CASES = [(f, opset) for f in ('deit', 'pvtv2') for opset in (OPSETS[0], 17, OPSETS[-1])]
CASES += [('dinov2', 17), ('dinov3', OPSETS[0])]


@pytest.mark.parametrize(('family', 'opset'), CASES)
def test_maps_of_a_pruned_backbone(classifier, family, opset, tmp_path, image, distance):
    """Of a classifier's config, whose DeiT gives no map by itself, with another number of images too."""
    options = classifier.options | ({'model.backbone.out_indices': (0, 1, 2, 3)} if family == 'pvtv2' else {})
    part = load_part('backbone', classifier.config, classifier.checkpoint, options)
    differences = write_onnx(part, tmp_path / 'new/model.onnx', SIZES, opset)
    assert set(differences) == set(SIZES)
    assert max(differences.values()) < 1e-5
    assert part.outputs == (('block5',) if family != 'pvtv2' else ('stage1', 'stage2', 'stage3', 'stage4'))
    backbone, images = classifier.model.backbone, image(*ODD, batch=3)
    backbone.out_indices, backbone.out_type = part.network.backbone.out_indices, 'featmap'
    with torch.no_grad():
        assert_equal(found(tmp_path / 'new/model.onnx', images), backbone(images), distance)


@pytest.mark.parametrize('family', ['deit', 'dinov2', 'dinov3', 'pvtv2'])
def test_neck(detector, family, tmp_path, image, distance):
    """A plain ViT's windows of 4x4 tokens are larger than the grid of a 33x40 image, 3x3; at 131x75 some are filled."""
    part = load_part('neck', detector.config, detector.checkpoint, detector.options)
    assert part.outputs == (('p3', 'p4', 'p5', 'p6', 'p7') if family == 'pvtv2' else ('p2', 'p3', 'p4', 'p5', 'p6'))
    write_onnx(part, tmp_path / 'model.onnx', SIZES)
    for size in (ODD, (33, 40)):
        images = image(*size)
        with torch.no_grad():
            expected = detector.model.neck(detector.model.backbone(images))
        assert_equal(found(tmp_path / 'model.onnx', images), expected, distance)


def test_classifier_and_metadata(classifier, family, tmp_path, image, distance):
    import onnx

    path = tmp_path / 'model.onnx'
    part = load_part('classifier', classifier.config, classifier.checkpoint, classifier.options)
    write_onnx(part, path, SIZES)
    images = image(*ODD)
    with torch.no_grad():
        assert_equal(found(path, images), [classifier.model(images)], distance)

    model = onnx.load(path)
    onnx.checker.check_model(model)
    (source,), (logits,) = model.graph.input, model.graph.output
    shape = [d.dim_param or d.dim_value for d in source.type.tensor_type.shape.dim]
    assert (source.name, shape) == ('image', ['batch', 3, 'height', 'width'])
    assert (logits.name, logits.type.tensor_type.shape.dim[1].dim_value) == ('logits', 10)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata['arch_name'] == f'tiny-{family}'
    assert ArchSpec.from_dict(json.loads(metadata['arch'])) == classifier.model.backbone.arch
    assert metadata['checkpoint_sha256'] == sha256_of(classifier.checkpoint)
    assert (metadata['upvit_mm_version'], metadata['part']) == (__version__, 'classifier')
    assert json.loads(metadata['mean']) == list(part.network.colours.mean)
    assert json.loads(metadata['std']) == list(part.network.colours.std)
    assert metadata['channel_order'] == ('RGB' if part.network.colours.flip else 'BGR')


@pytest.mark.parametrize('family', ['pvtv2'])
def test_a_student_needs_no_teacher(save):
    config = 'configs/demo/up-pvtv2-micro_distil_digits.py'
    files = save(config, **{'model.teacher': None, 'model.head.in_channels': 40})
    del files.options['model.teacher']
    part = load_part('classifier', files.config, files.checkpoint, files.options)
    images = part.images(*ODD)
    with torch.no_grad():
        assert torch.equal(part.run(images)[0], files.model(images))


@pytest.mark.parametrize('family', ['pvtv2'])
def test_a_sliced_network_has_a_smaller_file(save, tmp_path):
    """In proportion to its parameters; the graph itself takes little."""
    config, arch_file = 'configs/demo/up-pvtv2-micro_digits.py', ROOT / 'configs/_base_/archs/pvtv2-micro.json'
    dense_arch = ArchSpec.from_json(arch_file)
    dense_files = save(config, **{'model.backbone.arch': str(arch_file)})
    plan = make_plan(dense_arch, {name: range(0, dim.size, 2) for name, dim in prunable_dims(dense_arch).items()})
    state = slice_state(dense_files.model.state_dict(), plan)
    torch.save({'state_dict': state}, tmp_path / 'pruned.pth')
    arch, arch_file = plan.target_arch, plan.target_arch.save_json(tmp_path / 'sliced.json')
    options = {'model.backbone.arch': str(arch_file), 'model.head.in_channels': arch.embed_dims[-1]}
    dense = load_part('classifier', *dense_files[1:])
    sliced = load_part('classifier', dense_files.config, str(tmp_path / 'pruned.pth'), options)

    results = export(sliced, tmp_path / 'sliced.onnx', SIZES[:2], repeats=2, dense=dense)
    assert not list(tmp_path.glob('*dense.onnx'))
    assert results['exported'].num_bytes == (tmp_path / 'sliced.onnx').stat().st_size
    params = {'exported': count_params(arch, 10), 'dense': count_params(dense_arch, 10)}
    graphs = {name: result.num_bytes - 4 * params[name] for name, result in results.items()}
    assert params['dense'] / params['exported'] > 3.5
    assert 0 < graphs['dense'] < 200_000 < results['dense'].num_bytes / 15
    assert graphs['exported'] == pytest.approx(graphs['dense'], rel=0.02)

    header, rows = result_rows(results)
    assert header[-1] == 'dense / it'
    assert [row[:2] for row in rows] == [[name, f'{h}x{w}'] for name in results for h, w in SIZES[:2]]
    ratio = results['dense'].timings[SIZES[0]].median / results['exported'].timings[SIZES[0]].median
    assert rows[0][-1] == f'{ratio:.2f}'
    assert rows[2][-1] == '1.00'
    alone, (first, *_) = result_rows({'exported': results['exported']})
    assert alone == header[:-1]
    assert len(first) == len(alone)


class HoldsOn(nn.Module):
    """A trace takes the height that it was made at for a constant."""

    def forward(self, image):
        return image.mean(dim=(1, 2, 3))[:, None] * int(image.shape[2])


def test_wrong_numbers_leave_no_file(classifier, tmp_path):
    part = load_part('classifier', classifier.config, classifier.checkpoint, classifier.options)
    folder = tmp_path / 'out'
    folder.mkdir()
    (folder / 'model.onnx').write_text('older')
    with pytest.raises(ValueError, match=r'model.onnx: at 96x64 onnxruntime differs from torch by .* nothing was writ'):
        write_onnx(replace(part, model=HoldsOn()), folder / 'model.onnx', SIZES)
    assert [p.name for p in folder.iterdir()] == ['model.onnx']
    assert (folder / 'model.onnx').read_text() == 'older'


def test_mistakes(classifier, family, tmp_path):
    part = load_part('backbone', classifier.config, classifier.checkpoint, classifier.options)
    smallest = {'deit': 16, 'pvtv2': 32}[family]
    with pytest.raises(ValueError, match=f'image of {smallest - 1}x64 pixels: UP.* needs at least {smallest} pixels'):
        write_onnx(part, tmp_path / 'model.onnx', [(64, 64), (smallest - 1, 64)])
    with pytest.raises(ValueError, match=r'opset = 21: must lie in 13 to 20\.'):
        write_onnx(part, tmp_path / 'model.onnx', SIZES, opset=21)
    with pytest.raises(ValueError, match='repeats = 1'):
        export(part, tmp_path / 'model.onnx', SIZES[:1], repeats=1)
    (tmp_path / 'file').touch()
    (tmp_path / 'folder').mkdir()
    for path in (tmp_path / 'file/model.onnx', tmp_path / 'folder'):
        with pytest.raises(OSError, match=f'{path} cannot be written .* name a file in a folder'):
            write_onnx(part, path, SIZES[:1])
    assert not (tmp_path / 'model.onnx').exists()
