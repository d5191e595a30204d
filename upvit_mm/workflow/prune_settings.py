"""Settings of the pruning job. Importing this file takes no torch, so that a typo is answered at once."""

from __future__ import annotations

from dataclasses import Field, dataclass, fields
from typing import TYPE_CHECKING, Any

from upvit_mm.arch.size import Size, Windows, parse_size
from upvit_mm.choices import CRITERIA, HEAD_POLICIES, KERNEL_WIDTHS, PRECISIONS
from upvit_mm.pruning.methods import METHODS

if TYPE_CHECKING:
    from upvit_mm.pruning.knobs import Grain

ATTENTION, EMBED = ('channels', 'lowrank'), ('channels', 'rotate')
FOR_DETECTORS = dict(num_images=128, eval_images=None, batch_size=2)  # other defaults


@dataclass(frozen=True)
class PruneSettings:
    """Settings of a pruning job. The defaults are those of classifiers; ``FOR_DETECTORS`` has others.

    Attributes:
        method: of scoring, one of ``METHODS`` (``pruning/methods.py``).
        draws: backward passes per image, see ``fisher_sums``.
        near_share: share of each dim (or head) around the cut that a second method scores again, see ``Method``.
        per_class: images of every class in the proxy set.
        images: plain folder of images to use instead of the config's data.
        size: pixels of the images of the proxy set, ``'HEIGHTxWIDTH'`` or ``'SIDE'``. Images of a classifier are
            stretched to it, pictures of a detector get it as scale of their ``Resize``; None = as in the config's test.
        num_images: size of the proxy set when it comes from ``images``; of a detector always.
        criterion: what the importance looks at, one of ``CRITERIA``; None = tokens of detectors and of networks without
            a head, else class posteriors. The loss is a detector's own.
        attention: ``'channels'`` cuts channels of heads, ``'lowrank'`` directions of what they compute
            (``pruning/head_axes.py``); None = ``'lowrank'`` for detectors and networks without a head, else
            ``'channels'``; for a given plan what it was made for.
        embed: ``'channels'`` cuts channels of the embedding, ``'rotate'`` directions of the residual stream
            (``pruning/stream_axes.py``; DeiT classifiers).
        head_policy, tie_qkv: see ``plan_for_target``.
        round_to, min_share: see ``Grain``; for budgets. ``round_to = 'auto'`` becomes what kernels of the ``device``
            like, see ``KERNEL_WIDTHS``.
        non_uniform: whether a budget gives each block its own widths, by score for cost.
        window_size: windows of the detector's attention (DeiT), for budgets in MACs; 0 = global.
        compensate: re-solve the linear layers after slicing.
        ridge: see ``compensate``; None = chosen for each layer.
        heal: minutes of training after the compensation in which a pruned detector follows the dense one on the proxy
            set (``workflow/healing.py``); 0 = none.
        seed: seed of the proxy set and of random parts of the method.
        eval_images: largest number of held-out images for evaluation (the first ones of a detector's test set); None =
            all; 0 = no evaluation.
        amp: lower precision of the passes of ``fisher``, one of ``PRECISIONS``; None = float32. How far the ranks agree
            with those of float32 is measured on the first images.
        batch_size: images per batch.
        max_rows: images x candidates at once, see ``exact_sums``; limits the memory.
        memory: GiB of a GPU's memory for the activations of the compensation; the others wait on the host. None = half
            of what is free.
        workers: threads that read pictures; 0 = pictures are read in between.
        device: ``'cpu'`` or ``'cuda'`` (``'cuda:3'``).

    Raises:
        ValueError: a setting of another type or out of its range.
    """

    method: str = 'fisher'
    draws: int = 4
    near_share: float = 0.2
    per_class: int = 5
    images: str | None = None
    size: str | None = None
    num_images: int = 1000
    criterion: str | None = None
    attention: str | None = None
    embed: str = 'channels'
    head_policy: str = 'within'
    tie_qkv: bool = False
    round_to: int | str = 8
    min_share: float = 0.1
    non_uniform: bool = True
    window_size: int = 0
    compensate: bool = True
    ridge: float | None = None
    heal: float = 0.0
    seed: int = 0
    eval_images: int | None = 1000
    batch_size: int = 32
    amp: str | None = None
    max_rows: int = 256
    memory: float | None = None
    workers: int = 4
    device: str = 'cpu'

    def __post_init__(self):
        for field in fields(self):
            _check_type(field, getattr(self, field.name))
        if self.round_to == 'auto':  # a number from here on, so that records and plans hold what was used
            object.__setattr__(self, 'round_to', KERNEL_WIDTHS[self.device.partition(':')[0]])
        if isinstance(self.round_to, str):
            raise ValueError(f"round_to = {self.round_to!r}: must be a whole number, or 'auto'.")
        choices = {'method': METHODS, 'head_policy': HEAD_POLICIES, 'embed': EMBED}
        optional = {'criterion': CRITERIA, 'attention': ATTENTION, 'amp': PRECISIONS}
        for name, known in (choices | optional).items():
            value = getattr(self, name)
            if value not in known and not (value is None and name in optional):
                raise ValueError(f'{name} = {value!r}: must be one of {", ".join(known)}.')
        least = dict.fromkeys(('draws', 'per_class', 'num_images', 'round_to', 'batch_size', 'max_rows'), 1)
        for name, low in (least | {'window_size': 0, 'eval_images': 0, 'workers': 0}).items():
            if (value := getattr(self, name)) is not None and value < low:
                raise ValueError(f'{name} = {getattr(self, name)}: must be at least {low}.')
        if not 0 < self.near_share <= 1:
            raise ValueError(f'near_share = {self.near_share}: must be above 0 and at most 1.')
        if not 0 <= self.min_share <= 1:
            raise ValueError(f'min_share = {self.min_share}: must lie in 0 to 1.')
        if self.heal < 0:
            raise ValueError(f'heal = {self.heal}: minutes, 0 or more.')
        if self.embed == 'rotate' and not METHODS[self.method].criteria:
            fitting = [name for name, method in METHODS.items() if method.criteria]
            raise ValueError(
                f"embed = 'rotate', method = {self.method!r}: it does not score directions; take one of "
                f'{", ".join(fitting)}.'
            )
        self.side_lengths  # noqa: B018  it refuses what is no size
        if self.amp and 'amp' not in METHODS[self.method].settings:
            raise ValueError(
                f'amp = {self.amp!r}, method = {self.method!r}: it is always computed in float32; leave amp out.'
            )
        if self.memory is not None and not self.memory >= 0:
            raise ValueError(f'memory = {self.memory}: GiB, 0 or more.')
        if self.ridge is not None and not self.ridge > 0:
            raise ValueError(f'ridge = {self.ridge}: must be above 0.')

    @property
    def grain(self) -> Grain:
        """Which widths a budget may choose.

        Raises:
            ValueError: a head policy that budgets do not allow.
        """
        from upvit_mm.pruning.knobs import Grain  # torch

        return Grain(self.round_to, self.min_share, self.head_policy, self.tie_qkv)

    @property
    def turns(self) -> bool:
        """Whether the network is put into other axes before it is scored."""
        return self.attention == 'lowrank' or self.embed == 'rotate'

    @property
    def side_lengths(self) -> Size | None:
        """``size`` as ``(height, width)`` in pixels.

        Raises:
            ValueError: it is no size.
        """
        return None if self.size is None else parse_size(self.size)

    @property
    def windows(self) -> Windows:
        """Windows of the detector's attention."""
        return Windows(self.window_size)

    def some(self, *names: str) -> dict:
        """These settings, as plain data."""
        return {name: getattr(self, name) for name in names}


def _check_type(field: Field, value: Any) -> None:
    """Refuse a value of a command line or a config whose type is not the field's; an int may be a float."""
    rule = field.type.split(' | ')  # annotations are strings here
    kinds = {'int': 'a whole number', 'float': 'a number', 'bool': 'True or False', 'str': 'a text'}
    given = 'None' if value is None else type(value).__name__
    if given not in rule and not (given == 'int' and 'float' in rule):
        raise ValueError(f'{field.name} = {value!r}: must be {kinds[rule[0]]}.')
