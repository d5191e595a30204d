"""What is compared: data sets, networks, and the rows of each comparison. Importing this file takes no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path

SCALES = ('cpu', 'gpu')
SCALE_VARIABLE = 'UPVIT_MM_SCALE'  # the configs read it


@dataclass(frozen=True)
class Row:
    """A network of a comparison.

    Attributes:
        name: its name in folders and tables.
        share: its share of the dense network's multiply-accumulates in %.
        how: ``'dense'``; ``'continued'``, the dense one trained on like the pruned one; ``'pruned'``, with the dense
            one as teacher; ``'alone'``, the pruned one without a teacher; ``'vanilla'``, random weights in the pruned
            one's shape; ``'dropping'``, the dense one with token dropping at the pruned one's cost.
        method: how channels are scored, if it is pruned.
        taught: whether token dropping has the dense one as teacher.
        both_trainings: whether it has the dense network's epochs and those of the pruned one.
        rank: rows with a low rank are trained first.
    """

    name: str
    share: int
    how: str
    method: str = 'fisher'
    taught: bool = True
    both_trainings: bool = False
    rank: int = 0

    @property
    def shape_of(self) -> str:
        """The pruned row that has its shape, or its cost."""
        return f'up-{self.share}'


ROWS = (
    Row('dense', 100, 'dense'),
    Row('up-50', 50, 'pruned'),
    Row('vanilla-50', 50, 'vanilla'),
    Row('dropping-50', 50, 'dropping'),
    Row('dense-on', 100, 'continued'),
    Row('up-50-alone', 50, 'alone', rank=1),
    Row('dropping-50-alone', 50, 'dropping', taught=False, rank=1),
    Row('up-25', 25, 'pruned', rank=2),
    Row('dropping-25', 25, 'dropping', rank=2),
    Row('magnitude-50', 50, 'pruned', method='magnitude', rank=2),
    Row('random-50', 50, 'pruned', method='random', rank=3),
    Row('vanilla-50-long', 50, 'vanilla', both_trainings=True, rank=3),
)
RANKS = sorted({row.rank for row in ROWS})
TITLES = {
    'dense': 'dense',
    'dense-on': 'dense, trained on for the epochs of UP',
    'up-50': 'UP, half of the MACs',
    'up-50-alone': 'UP, half of the MACs, without a teacher',
    'up-25': 'UP, a quarter',
    'vanilla-50': 'vanilla of the half shape, epochs of UP',
    'vanilla-50-long': 'vanilla of the half shape, epochs of dense and UP',
    'dropping-50': 'token dropping at half',
    'dropping-50-alone': 'token dropping at half, without a teacher',
    'dropping-25': 'token dropping at a quarter',
    'magnitude-50': 'magnitude, shape of UP, repaired',
    'random-50': 'random channels, shape of UP, repaired',
}

SHORT = {  # in charts and above pictures
    'dense': 'dense',
    'dense-on': 'dense, trained on',
    'up-50': 'UP, half',
    'up-50-alone': 'UP, half, no teacher',
    'up-25': 'UP, a quarter',
    'vanilla-50': 'vanilla',
    'vanilla-50-long': 'vanilla, long',
    'dropping-50': 'token dropping',
    'dropping-50-alone': 'token dropping, no teacher',
    'dropping-25': 'token dropping, a quarter',
    'magnitude-50': 'magnitude',
    'random-50': 'random',
}


@dataclass(frozen=True)
class Study:
    """A comparison on one data set with one family of backbones.

    Attributes:
        data: name of the data set; its folder is ``data/NAME``.
        family: name of the family in folders and tables.
        config: config in ``configs/real``, without ``.py``.
        dense_epochs: for each scale, of the dense network.
        starts_from: the study whose dense network has the backbone's start weights, as ``(data, family)``; None = what
            the config says.
        slow_to_judge: whether its validation takes as long as epochs of training. Then trainings and prunings leave it
            to the steps that evaluate, which judge each network once.
        proxy: for each scale, pictures for scores and repair.
    """

    data: str
    family: str
    config: str
    dense_epochs: dict[str, int]
    starts_from: tuple[str, str] | None = None
    slow_to_judge: bool = False
    proxy: dict[str, int] = field(default_factory=lambda: {'cpu': 64, 'gpu': 128})

    @property
    def is_detector(self) -> bool:
        return self.data != 'cifar10'

    @property
    def name(self) -> str:
        return f'{self.data}/{self.family}'

    @property
    def rows(self) -> Sequence[Row]:
        """All rows of a detector. Token dropping of classifiers has no grid to fill."""
        return ROWS if self.is_detector else [row for row in ROWS if row.how != 'dropping']

    def epochs(self, row: Row, scale: str) -> int:
        """Epochs of a row's own training: fine-tuning has half of the dense network's."""
        dense = self.dense_epochs[scale]
        tuned = ceil(dense / 2)
        if row.how == 'dense':
            return dense
        return dense + tuned if row.both_trainings else tuned


VIT, PVT, DEIT = 'ViT-S', 'PVTv2-B0', 'DeiT-micro'
VIT_WEIGHTS = Path('checkpoints/dinov2-small.pth')  # in the configs
CIFAR = ('cifar10', PVT)
SQUARE = {'cpu': (64, 64), 'gpu': (64, 64)}
MANY_TOKENS = {'cpu': 32, 'gpu': 128}  # a whole picture of nuclei has 7 times the tokens of one of BCCD
SIZES = {  # (data, family) -> scale -> height and width, padded, of the pictures in which costs are counted
    ('bccd', VIT): {'cpu': (196, 252), 'gpu': (784, 1036)},
    ('bccd', PVT): {'cpu': (192, 256), 'gpu': (768, 1024)},
    ('nuclei', VIT): {'cpu': (224, 224), 'gpu': (532, 532)},
    ('nuclei', PVT): {'cpu': (224, 224), 'gpu': (512, 512)},
    ('cifar10', PVT): SQUARE,
    ('cifar10', DEIT): SQUARE,
}
STUDIES = (
    Study('bccd', VIT, 'retinanet_up-dinov2-small_sfp_bccd', {'cpu': 8, 'gpu': 24}),
    Study(
        'nuclei',
        VIT,
        'mask-rcnn_up-dinov2-small_sfp_nuclei',
        {'cpu': 4, 'gpu': 16},
        slow_to_judge=True,
        proxy=MANY_TOKENS,
    ),
    Study('cifar10', PVT, 'up-pvtv2-b0_cifar10', {'cpu': 4, 'gpu': 60}),
    Study('bccd', PVT, 'retinanet_up-pvtv2-b0_fpn_bccd', {'cpu': 16, 'gpu': 24}, CIFAR),
    Study(
        'nuclei',
        PVT,
        'mask-rcnn_up-pvtv2-b0_fpn_nuclei',
        {'cpu': 8, 'gpu': 16},
        CIFAR,
        slow_to_judge=True,
        proxy=MANY_TOKENS,
    ),
    Study('cifar10', DEIT, 'up-deit-micro_cifar10', {'cpu': 4, 'gpu': 60}),
)


def studies_of(data: Sequence[str], families: Sequence[str] = ()) -> list[Study]:
    """The studies of some data sets, and of some families; none named = all.

    Raises:
        ValueError: an unknown name.
    """
    for label, given, known in (
        ('data', data, {study.data for study in STUDIES}),
        ('families', families, {study.family for study in STUDIES}),
    ):
        if unknown := [name for name in given if name not in known]:
            raise ValueError(f'{label} = {unknown[0]!r}: must be one of {", ".join(sorted(known))}.')
    found = [s for s in STUDIES if (not data or s.data in data) and (not families or s.family in families)]
    if not found:
        known = ', '.join(study.name for study in STUDIES)
        raise ValueError(
            f'families = {", ".join(families)}: none of them is compared on {", ".join(data)}; known: {known}.'
        )
    return found


def check_run(studies: Sequence[Study], jobs: int, report_only: bool = False) -> None:
    """Refuse an experiment that could not start, before its first step.

    Raises:
        FileNotFoundError: a data set or the pretrained ViT is missing.
        ValueError: no job.
    """
    if jobs < 1:
        raise ValueError(f'jobs = {jobs}: must be at least 1.')
    if report_only:
        return
    starts = [study.starts_from[0] for study in studies if study.starts_from]
    for name in dict.fromkeys([*(study.data for study in studies), *starts]):
        if not Path('data', name).is_dir():
            raise FileNotFoundError(
                f"data = {name!r}: the folder 'data/{name}' does not exist here; write it with tools/prepare_data.py "
                f'{name} (docs/own_data.md), or link it.'
            )
    if any(study.family == VIT for study in studies) and not VIT_WEIGHTS.is_file():
        raise FileNotFoundError(
            f'families = {VIT!r}: its pretrained weights {str(VIT_WEIGHTS)!r} do not exist here; put a ViT-S/14 of '
            "DINOv2's shape there, in any layout (docs/vits.md), or choose other --families."
        )
