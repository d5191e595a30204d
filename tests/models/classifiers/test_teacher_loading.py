"""What the teacher of a distillation is loaded from."""

import pytest
import torch


def test_averages_or_raw_weights(distil, dense, dense_path, terms, identical):
    raw = dense.state_dict()
    ema = {k: v + 1 for k, v in raw.items()}
    torch.save({'model': raw, 'model_ema': ema}, dense_path)
    for settings, expected in (({}, raw), (dict(weights='raw'), raw), (dict(weights='ema'), ema)):
        model = distil(terms('soft'), teacher=settings)
        assert identical(model.teacher.classifier.state_dict(), expected)


def test_a_head_with_a_hidden_layer_is_needed_by_logits_only(distil, dense, dense_path, terms):
    state = {k: v for k, v in dense.state_dict().items() if k.startswith('backbone.')}
    head = {
        f'head.layers.{n}.{p}': torch.ones(7, 7)[0 if p == 'bias' else ...] for n in 'ab' for p in ('weight', 'bias')
    }
    torch.save({'state_dict': state | head}, dense_path)
    with pytest.raises(ValueError, match=r"dense.pth': its head is more than one linear layer \(head.layers.a.weight"):
        distil(terms('soft'))
    distil(terms('feature'), teacher=dict(head=None))


def test_a_teacher_of_other_scales_is_refused(family, distil, dense, dense_path, tiny_arch, terms, network):
    torch.save({'state_dict': dense.state_dict(), 'meta': {'arch': dense.backbone.arch.to_dict()}}, dense_path)
    distil(terms('soft'))
    with pytest.raises(ValueError, match=r'another network than arch tiny-.*: qk_scales\[0\]\[0\] = '):
        distil(terms('soft'), teacher=network(tiny_arch(family, qk_scales=0.15)))
