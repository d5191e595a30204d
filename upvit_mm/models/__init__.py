"""How an ArchSpec becomes modules, registered for OpenMMLab under the scope ``upvit_mm``."""

from upvit_mm.openmmlab import log_into_runs, require_openmmlab

require_openmmlab()
log_into_runs()

from upvit_mm.models.backbones import UPDeiT, UPPVTv2, UPViT, build_backbone  # noqa: E402
from upvit_mm.models.classifiers import DistillClassifier  # noqa: E402
from upvit_mm.models.losses import FeatureMSE, SoftTargetKL, TokenMSE  # noqa: E402
from upvit_mm.models.necks import SimpleFeaturePyramid  # noqa: E402

__all__ = [
    'DistillClassifier',
    'FeatureMSE',
    'SimpleFeaturePyramid',
    'SoftTargetKL',
    'TokenMSE',
    'UPDeiT',
    'UPPVTv2',
    'UPViT',
    'build_backbone',
]
