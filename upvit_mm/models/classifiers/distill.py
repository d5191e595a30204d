"""Fine-tuning by distillation: an mmpretrain classifier with a frozen teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmpretrain.models import ImageClassifier
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from upvit_mm.arch import resolve_arch
from upvit_mm.checkpoints import check_state, load_backbone, load_classifier
from upvit_mm.models.backbones.base import split_pretrained
from upvit_mm.models.classifiers.teacher import Teacher, check_backbone, observe
from upvit_mm.models.losses import DistillLoss
from upvit_mm.registry import MODELS


@MODELS.register_module()
class DistillClassifier(ImageClassifier):
    """``ImageClassifier`` whose loss adds terms that compare it with a frozen teacher on the same batch.

    The teacher is not a submodule: it is not in ``state_dict``, parameters, optimizer or copies (including EMA's). But
    it follows ``.to()``, ``.cuda()``, ``.half()``. The student's tensors keep the names of an ``ImageClassifier``, so
    its checkpoint loads in one, or with ``prefix='backbone.'`` in a detector.

    Args:
        backbone: the student's.
        teacher: ``dict(backbone=..., neck=..., head=..., checkpoint=..., data_preprocessor=...)``, see ``Teacher``.
            None for evaluation without the teacher's checkpoint.
        distill: configs of ``DistillLoss`` by name; each term is logged as ``loss_NAME``, the head's own as
            ``loss_ce``, the sum as ``loss``.
        head: head of the student; if ``in_channels`` is left out, it is the backbone's. None trains the backbone alone,
            by terms that compare features or tokens; then images need no labels.
        **settings: ``neck``, ``train_cfg``, ``data_preprocessor`` and ``init_cfg`` of ``ImageClassifier``, where
            ``init_cfg=dict(type='Pretrained', checkpoint=...)`` starts backbone and head from a pruned classifier.

    Raises:
        FileNotFoundError: a checkpoint or plan does not exist.
        ValueError: a teacher's checkpoint that does not fit, class counts or widths that differ, a plan that does not
            lead from teacher to student; the message names values and remedy.
    """

    teacher: Teacher | None = None

    def __init__(
        self,
        backbone: Mapping,
        teacher: Mapping | None,
        distill: Mapping[str, Mapping],
        head: Mapping | None = None,
        **settings: Any,
    ):
        if head is not None and 'in_channels' not in head and 'arch' in backbone:
            head = dict(head, in_channels=resolve_arch(backbone['arch']).embed_dims[-1])
        super().__init__(backbone, head=head, **settings)
        check_backbone('backbone', self.backbone)
        self.distill_losses = nn.ModuleDict()
        if teacher is None:
            return
        if not distill or 'ce' in distill:  # the head's loss is loss_ce
            raise ValueError(f'distill = {dict(distill)!r}: must have one term or more, none of them named ce.')
        teacher = Teacher(**teacher, student_preprocessor=self.data_preprocessor)
        object.__setattr__(self, 'teacher', teacher)  # nn.Module's __setattr__ would make it a submodule
        self._check_heads(teacher.classifier)
        for name, config in distill.items():
            self.distill_losses[name] = term = MODELS.build(config)
            if not isinstance(term, DistillLoss):
                raise ValueError(f'distill.{name}.type = {config["type"]!r}: must be a DistillLoss of upvit_mm.')
            if term.compares == 'logits' and not (self.with_head and teacher.classifier.with_head):
                raise ValueError(f'distill.{name} compares logits: student and teacher need a head.')
            term.connect(self.backbone.arch, teacher.classifier.backbone.arch)

    def _check_heads(self, teacher: ImageClassifier) -> None:
        if self.with_head and teacher.with_head and teacher.head.num_classes != self.head.num_classes:
            raise ValueError(
                f'teacher.head.num_classes = {teacher.head.num_classes}, head.num_classes = {self.head.num_classes}: '
                'must be the same; to distil features alone between data sets, leave teacher.head out.'
            )

    def init_weights(self) -> None:
        """Called by mmengine; a ``Pretrained`` checkpoint must hold this backbone and this head, in any known layout.

        Raises:
            FileNotFoundError: the checkpoint does not exist.
            ValueError: it does not fit; mmengine would only log it, and start from a random head.
        """
        first_call, configured = not self.is_init, self.init_cfg
        pretrained, self.init_cfg = split_pretrained(configured)
        super().init_weights()
        self.init_cfg = configured
        for config in pretrained if first_call else ():
            source = (config['checkpoint'], config.get('prefix'), config.get('weights'))
            if self.with_head:
                state = load_classifier(*source, arch=self.backbone.arch)
            else:
                backbone = load_backbone(*source, arch=self.backbone.arch)
                state = {f'backbone.{k}': v for k, v in backbone.items()}
            own = self.state_dict()
            expected = {k: v for k, v in own.items() if not k.startswith('distill_losses.')}
            check_state(state, expected, f'the student (checkpoint={config["checkpoint"]})')
            self.load_state_dict({**own, **state})

    def loss(self, inputs: Tensor, data_samples: list[DataSample]) -> dict[str, Tensor]:
        """The head's loss, if there is a head, renamed ``loss_ce``, and one term per entry of ``distill``.

        Args:
            inputs: ``(B, 3, h, w)`` from the preprocessor, after CutMix and Mixup; the teacher gets the same images.
            data_samples: labels, mixed if the images are mixed; not read without a head.

        Raises:
            ValueError: there is no teacher.
        """
        if self.teacher is None:
            raise ValueError('teacher = None: this model can only be evaluated; give the teacher to train it.')
        wanted = {term.compares for term in self.distill_losses.values()}
        theirs = self.teacher(inputs, wanted)
        feats, ours = observe(self, inputs, wanted)
        losses = self.head.loss(feats, data_samples) if self.with_head else {}
        # mmengine logs the sum as `loss`; a term of that name would replace it in the log
        losses = {'loss_ce' if key == 'loss' else key: value for key, value in losses.items()}
        for name, term in self.distill_losses.items():
            losses[f'loss_{name}'] = term(ours[term.compares], theirs[term.compares])
        return losses

    def _apply(self, fn, *args, **kwargs):
        """Every move and cast of a module comes through here."""
        super()._apply(fn, *args, **kwargs)
        if self.teacher is not None:
            self.teacher._apply(fn, *args, **kwargs)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """The state for ``copy.deepcopy`` and pickle, without the teacher: no copy needs it."""
        return {key: value for key, value in self.__dict__.items() if key != 'teacher'}
