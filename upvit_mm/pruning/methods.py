"""The scoring methods, one entry each.

To add a method, write a function of a batch (``importance.py``) or of the weights (``baselines.py``), and an entry in
``METHODS``, with the function or its place (``Later``). The command line, the job, its fingerprints, the dry run and
the benchmark read this table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from upvit_mm.choices import CRITERIA

if TYPE_CHECKING:
    from upvit_mm.pruning.importance import Scores, Sums

NEEDS = ('weights', 'images', 'gradients', 'labels')


@dataclass(frozen=True)
class Later:
    """A function that is imported when it is called: the command line reads ``METHODS`` without torch.

    Attributes:
        place: ``'module:function'`` in this package.
    """

    place: str

    @cached_property
    def function(self) -> Callable[..., Any]:
        """The function itself."""
        return resolve_name(f'{__package__}.{self.place}')

    def __call__(self, *args: Any, **settings: Any) -> Any:
        """What the function returns."""
        return self.function(*args, **settings)


@dataclass(frozen=True)
class Method:
    """How channels are scored.

    Attributes:
        name: on the command line, in configs and in files.
        summary: the meaning of a score, in a few words.
        needs: what the method reads, from ``NEEDS``. It must also work where labels are not known.
        settings: names of the settings that its function takes, by keyword.
        criteria: names of the criteria that it can measure (``criteria.py``); its function then takes ``criterion``,
            and its network is that of the criterion. Empty = it looks at class posteriors in its own way.
        of_batch: ``(net, batch, channels, report=..., **settings)`` -> ``Sums`` over the images of at least these
            channels. The sums of a dim must not depend on which other dims are asked for.
        of_weights: instead of ``of_batch``: ``(arch, state, **settings)`` -> ``Scores``, for a method that needs no
            images.
        near_cut: a second method, which scores the channels near the cut of a plan again and puts them in its order
            (``hybrid.py``); None = all scores stay as they are.
    """

    name: str
    summary: str
    needs: tuple[str, ...]
    settings: tuple[str, ...] = ()
    criteria: tuple[str, ...] = ()
    of_batch: Callable[..., Sums] | None = None
    of_weights: Callable[..., Scores] | None = None
    near_cut: Method | None = None

    def __post_init__(self):
        assert set(self.needs) <= set(NEEDS), f'{self.name}: needs one of {NEEDS}'
        assert (self.of_batch is None) != (self.of_weights is None), f'{self.name}: one function, of a batch or weights'
        assert self.needs_images == ('images' in self.needs), f'{self.name}: a function of a batch needs images'

    @property
    def needs_images(self) -> bool:
        """Whether it needs a proxy set."""
        return self.of_batch is not None

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of all settings that its scores depend on, without those that decide the images and the plan."""
        more = () if self.near_cut is None else (*self.near_cut.settings, 'near_share')
        return (*self.settings, *more)


FISHER = Method(
    'fisher',
    'an estimate of exact for all channels at once, far cheaper',
    needs=('images', 'gradients'),
    settings=('draws', 'seed', 'amp'),
    criteria=CRITERIA,
    of_batch=Later('importance:fisher_sums'),
)
EXACT = Method(
    'exact',
    'the change without the channel (UP-ViTs: KL of the posteriors)',
    needs=('images',),
    settings=('max_rows',),
    criteria=('posterior', 'tokens'),
    of_batch=Later('importance:exact_sums'),
)
HYBRID = Method(
    'hybrid',
    'fisher, and exact for the channels near the cut',
    needs=FISHER.needs,
    settings=FISHER.settings,
    criteria=EXACT.criteria,
    of_batch=FISHER.of_batch,
    near_cut=EXACT,
)
TAYLOR = Method(
    'taylor',
    'size of the slope of the cross entropy',
    needs=('images', 'gradients', 'labels'),
    of_batch=Later('importance:taylor_sums'),
)
MAGNITUDE = Method(
    'magnitude',
    'norm of what belongs to the channel',
    needs=('weights',),
    of_weights=Later('baselines:magnitude_scores'),
)
RANDOM = Method(
    'random',
    'drawn at random',
    needs=(),
    settings=('seed',),
    of_weights=lambda arch, state, seed: Later('baselines:random_scores')(arch, seed),
)
METHODS: dict[str, Method] = {method.name: method for method in (FISHER, EXACT, HYBRID, TAYLOR, MAGNITUDE, RANDOM)}


def readers_of(setting: str) -> list[str]:
    """Names of the methods that read a setting."""
    return [name for name, method in METHODS.items() if setting in method.reads]
