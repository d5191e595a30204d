"""Ways to train a pruned classifier, and options of their comparison. Importing this file takes no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from upvit_mm.workflow.lesson import Lesson


@dataclass(frozen=True)
class Way:
    """One way to train the target architecture.

    Attributes:
        key: name of its folder.
        title: its name in tables.
        start: file of the pruning job to start from; None = from scratch.
        distilled: whether the dense network teaches.
        both_trainings: whether it gets the epochs of the dense network and of a pruned one together.
    """

    key: str
    title: str
    start: str | None
    distilled: bool
    both_trainings: bool = False


VANILLA = Way('vanilla', 'vanilla, from scratch', None, False)
WAYS = (
    VANILLA,
    Way('vanilla-distilled', 'vanilla, from scratch, distilled', None, True),
    Way('sliced-distilled', 'UP, plain slice, distilled', 'sliced.pth', True),
    Way('compensated-distilled', 'UP, compensated, distilled', 'pruned.pth', True),
    Way('compensated', 'UP, compensated, no teacher', 'pruned.pth', False),
    Way('vanilla-long', 'vanilla, from scratch, the dense epochs too', None, False, both_trainings=True),
)


@dataclass(frozen=True)
class ClassifierOptions:
    """Options of a comparison.

    Attributes:
        epochs: epochs of every training.
        seeds: each row is trained once with each.
        train_images: size of the class-balanced subset of the training images that is used; None = all.
        dense_epochs: epochs of the dense network; None = ``epochs`` if it is trained here, otherwise unknown.
        lr: learning rate of networks from scratch; None = the config's.
        finetune_lr: learning rate of pruned networks; None = ``lr``.
        lesson: what students learn from the dense network.
        rows: keys of ``WAYS``; None = all for which the epochs are known.
        jobs: trainings at a time.

    Raises:
        ValueError: a setting that makes no sense.
    """

    epochs: int
    seeds: Sequence[int] = (0, 1, 2)
    train_images: int | None = None
    dense_epochs: int | None = None
    lr: float | None = None
    finetune_lr: float | None = None
    lesson: Lesson = field(default_factory=Lesson)
    rows: Sequence[str] | None = None
    jobs: int = 1

    def __post_init__(self):
        for name in ('epochs', 'train_images', 'dense_epochs', 'lr', 'finetune_lr', 'jobs'):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f'{name} = {value}: must be above 0.')
        known = [way.key for way in WAYS]
        for name, values in (('seeds', self.seeds), ('rows', known if self.rows is None else self.rows)):
            if not values or len(set(values)) < len(values):
                raise ValueError(f'{name} = {list(values)}: one or more, each once.')
        if unknown := sorted(set(self.rows or ()) - set(known)):
            raise ValueError(f'rows: {unknown[0]!r} is unknown; known: {", ".join(known)}.')
