"""Settings of the pruning job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, dataclass, fields
from typing import Any

from mmengine.config import Config

from upvit_mm.arch import ArchSpec, resolve_arch
from upvit_mm.arch.size import Size, Windows, parse_size
from upvit_mm.models.own_backbone import own_backbone
from upvit_mm.pruning import HEAD_POLICIES, PrunePlan
from upvit_mm.pruning.budget import Budget
from upvit_mm.pruning.criteria import CRITERIA
from upvit_mm.pruning.knobs import Grain
from upvit_mm.pruning.methods import METHODS
from upvit_mm.registry import require_family, scope_of

ATTENTION, EMBED = ('channels', 'lowrank'), ('channels', 'rotate')
GOALS = ('target', 'widths', 'budget', 'plan')
WIDTHS = ('depths', 'embed_dims', 'num_heads', 'qk_dims', 'v_dims', 'mlp_hidden_dims', 'qk_scales')  # --widths
Goal = ArchSpec | Budget | PrunePlan
FOR_DETECTORS = dict(num_images=128, attention='lowrank', eval_images=None, batch_size=2)  # other defaults
NOT_FOR_DETECTORS = {
    'per_class': 'pictures of a detector have several classes; give num_images',
    'window_size': "the windows are those of the config's backbone",
}


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
            (``pruning/head_axes.py``).
        embed: ``'channels'`` cuts channels of the embedding, ``'rotate'`` directions of the residual stream
            (``pruning/stream_axes.py``; DeiT classifiers).
        head_policy, tie_qkv: see ``plan_for_target``.
        round_to, min_share: see ``Grain``; for budgets.
        non_uniform: whether a budget gives each block its own widths, by score for cost.
        window_size: windows of the detector's attention (DeiT), for budgets in MACs; 0 = global.
        compensate: re-solve the linear layers after slicing.
        ridge: see ``compensate``; None = chosen for each layer.
        heal: minutes of training after the compensation in which a pruned detector follows the dense one on the proxy
            set (``workflow/healing.py``); 0 = none.
        seed: seed of the proxy set and of random parts of the method.
        eval_images: largest number of held-out images for evaluation (the first ones of a detector's test set); None =
            all; 0 = no evaluation.
        batch_size: images per batch.
        max_rows: images x candidates at once, see ``kl_sums``; limits the memory.
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
    attention: str = 'channels'
    embed: str = 'channels'
    head_policy: str = 'within'
    tie_qkv: bool = False
    round_to: int = 8
    min_share: float = 0.1
    non_uniform: bool = True
    window_size: int = 0
    compensate: bool = True
    ridge: float | None = None
    heal: float = 0.0
    seed: int = 0
    eval_images: int | None = 1000
    batch_size: int = 32
    max_rows: int = 256
    device: str = 'cpu'

    def __post_init__(self):
        for field in fields(self):
            _check_type(field, getattr(self, field.name))
        choices = {'method': METHODS, 'head_policy': HEAD_POLICIES, 'attention': ATTENTION, 'embed': EMBED}
        for name, known in (choices | ({'criterion': CRITERIA} if self.criterion else {})).items():
            if (value := getattr(self, name)) not in known:
                raise ValueError(f'{name} = {value!r}: must be one of {", ".join(known)}.')
        least = dict.fromkeys(('draws', 'per_class', 'num_images', 'round_to', 'batch_size', 'max_rows'), 1)
        for name, low in (least | {'window_size': 0, 'eval_images': 0}).items():
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
        if self.ridge is not None and not self.ridge > 0:
            raise ValueError(f'ridge = {self.ridge}: must be above 0.')

    @property
    def grain(self) -> Grain:
        """Which widths a budget may choose.

        Raises:
            ValueError: a head policy that budgets do not allow.
        """
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


def source_of(cfg: Config) -> ArchSpec:
    """The architecture of a config's dense classifier.

    Raises:
        ValueError: a detector's config, a model without a backbone of this package, or a backbone without an arch.
    """
    if scope_of(cfg) == 'mmdet':
        raise ValueError(
            "default_scope = 'mmdet': importance is measured in a classifier; give a classifier's config, for example "
            'configs/pruning/up-pvtv2-b0_from-pvtv2-b2_in1k.py.'
        )
    backbone = (cfg.get('model') or {}).get('backbone') or {}
    kind = backbone.get('type')
    require_family('model.backbone.type', kind)
    if backbone.get('arch') is None:
        raise ValueError(f"model.backbone.arch of {kind}: is missing; name one, as arch='pvtv2-b0'.")
    return resolve_arch(backbone.arch)


def is_detector(cfg: Config) -> bool:
    """Whether a config is of mmdet."""
    return scope_of(cfg) == 'mmdet'


def _arch_of(cfg: Config) -> ArchSpec:
    if not is_detector(cfg):
        return source_of(cfg)
    backbone = (cfg.get('model') or {}).get('backbone') or {}
    return ArchSpec.from_dict(own_backbone(backbone, cfg.get('default_scope') or 'mmdet')['arch'])


def goal_text(goal: Goal) -> str:
    """A goal in a few words, for the record."""
    if isinstance(goal, ArchSpec):
        return f'architecture {goal.name or "of given widths"}'
    return f'budget {goal}' if isinstance(goal, Budget) else 'plan given'


def goal_and_settings(cfg: Config, given: Mapping[str, Any]) -> tuple[Goal, PruneSettings]:
    """Goal and settings: the config's ``prune = dict(...)``, overridden by ``given``.

    Args:
        cfg: config of the dense network: of a classifier (mmpretrain) or of a detector (mmdet).
        given: fields of ``PruneSettings``, and one of ``target`` (stock name or ``arch.json``), ``widths`` (fields of
            an ArchSpec that change), ``budget`` (see ``Budget.parse``) and ``plan`` (``plan.json``); other keys and
            None are ignored.

    Raises:
        ValueError: no goal or several, an unknown setting in the config, a setting or a goal that cannot be read.
    """
    chosen = dict(cfg.get('prune', {}))
    names = {field.name for field in fields(PruneSettings)}
    if unknown := sorted(set(chosen) - names - set(GOALS)):
        raise ValueError(f'prune = dict({unknown[0]}=...) of the config: unknown; known: {", ".join(sorted(names))}.')
    goals = {kind: given[kind] for kind in GOALS if given.get(kind)}
    goals = goals or {kind: chosen[kind] for kind in GOALS if kind in chosen}
    if len(goals) != 1:
        raise ValueError(f'{len(goals)} goals are given; give one: {", ".join(GOALS)}.')
    settings = {name: value for name, value in chosen.items() if name in names}
    settings |= {name: given[name] for name in names if given.get(name) is not None}
    if is_detector(cfg):
        for name, reason in NOT_FOR_DETECTORS.items():
            if name in settings:
                raise ValueError(f'{name} = {settings[name]!r}: is not for a detector; {reason}.')
        settings = FOR_DETECTORS | settings
    ((kind, value),) = goals.items()
    if kind == 'widths':
        if other := sorted(set(value) - set(WIDTHS)):
            raise ValueError(f'widths: {other[0]} cannot be pruned; known: {", ".join(WIDTHS)}.')
        goal = _arch_of(cfg).with_widths(value)
    else:
        goal = {'target': resolve_arch, 'budget': Budget.parse, 'plan': PrunePlan.load}[kind](value)
    return goal, PruneSettings(**settings)
