"""What all backbones share: arch, initialisation, checkpoints, freezing, layer depth."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Mapping, Sequence

from mmengine.model import BaseModule
from mmengine.registry import WEIGHT_INITIALIZERS
from timm.layers import trunc_normal_
from torch import Tensor, nn

from upvit_mm.arch import ArchSpec, resolve_arch
from upvit_mm.arch.size import GLOBAL, Grid, Windows
from upvit_mm.checkpoints import check_state, load_backbone, to_ours_in_place
from upvit_mm.models.layers import Stage
from upvit_mm.models.layers.grid import tokens_to_map
from upvit_mm.registry import is_type

logger = logging.getLogger('upvit_mm')


def split_pretrained(init_cfg: Mapping | list | None) -> tuple[list[Mapping], list[Mapping] | None]:
    """Split an ``init_cfg`` into the parts that name checkpoints and the rest, in mmengine's form."""
    configs = init_cfg if isinstance(init_cfg, list) else [init_cfg] if init_cfg else []
    kinds = ('Pretrained', 'PretrainedInit')
    pretrained = [c for c in configs if is_type(c['type'], *kinds, registry=WEIGHT_INITIALIZERS)]
    return pretrained, [c for c in configs if c not in pretrained] or None


class UPBackbone(BaseModule):
    """Base of the backbones that are built from an ArchSpec.

    Subclasses set ``families`` and ``out_indices``, build ``self.stages``, and then call ``reset_parameters`` and
    ``freeze``.

    Args:
        arch: stock name, path of an ``arch.json``, or mapping (see ``upvit_mm.arch.resolve_arch``).
        frozen_stages: see the subclass; -1 freezes nothing.
        norm_eval: accepted because detector configs often set it; LayerNorm is the same in both modes.
        init_cfg: mmengine's, where ``dict(type='Pretrained', checkpoint=..., prefix=..., weights=...)`` takes any
            layout that ``upvit_mm.checkpoints`` knows (``prefix`` and ``weights`` as in ``load_backbone``). It raises
            an error if a tensor is missing, extra or of another shape, or if the file has other heads or logit scales.
    """

    families: tuple[str, ...]
    out_indices: tuple[int, ...]
    windows: Windows = GLOBAL
    stages: nn.ModuleList

    def __init__(self, arch, frozen_stages: int = -1, norm_eval: bool = False, init_cfg=None):
        super().__init__(init_cfg=init_cfg)
        if norm_eval:
            warnings.warn(
                'norm_eval=True is ignored: this backbone has LayerNorm only, which acts alike in training '
                'and evaluation.',
                stacklevel=3,
            )
        self.arch: ArchSpec = resolve_arch(arch, self.families)
        self.frozen_stages = frozen_stages

    # --------------------------------------------------------- initialisation

    def reset_parameters(self) -> None:
        """Draw new random weights, as the authors of all families do: truncated normal, 0.02, for Linear."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                self._reset_conv(module)

    def _reset_conv(self, conv: nn.Conv2d) -> None:
        fan_out = conv.kernel_size[0] * conv.kernel_size[1] * conv.out_channels // conv.groups
        nn.init.normal_(conv.weight, std=(2.0 / fan_out) ** 0.5)
        nn.init.zeros_(conv.bias)

    def init_weights(self) -> None:
        """Called by mmengine: load ``init_cfg``'s checkpoint with our loader, or initialise as ``init_cfg`` says.

        Raises:
            FileNotFoundError: the checkpoint does not exist.
            ValueError: it is unreadable, of another layout or family, or does not fit the arch.
        """
        first_call = not self.is_init
        configured = self.init_cfg
        pretrained, self.init_cfg = split_pretrained(configured)
        super().init_weights()
        self.init_cfg = configured
        if first_call:
            for config in pretrained:
                state = load_backbone(config['checkpoint'], config.get('prefix'), config.get('weights'), arch=self.arch)
                self.load_state_dict(state)
                logger.info('%s: loaded %d tensors from %s', self._describe(), len(state), config['checkpoint'])

    # ------------------------------------------------------------ checkpoints

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        """Every load comes through here (torch's, mmengine's, of this module or of a whole detector).

        mmengine only logs a mismatch and continues with random weights; here a wrong backbone raises an error.
        """
        to_ours_in_place(state_dict, prefix, self.arch)
        loaded = {k[len(prefix) :]: v for k, v in state_dict.items() if k.startswith(prefix)}
        check_state(loaded, self.state_dict(), self._describe())
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _describe(self) -> str:
        return f'{type(self).__name__}(arch={self.arch.name or "custom"})'

    # --------------------------------------------------------------- freezing

    def frozen_modules(self) -> Iterable[nn.Module | nn.Parameter]:
        """Modules and single parameters that ``frozen_stages`` freezes."""
        raise AssertionError('a subclass defines what it freezes')

    @property
    def places(self) -> tuple[tuple[int, int], ...]:
        """For each of ``out_indices``, the stage and the block whose tokens are returned."""
        raise AssertionError('a subclass defines what it returns')

    def blocks_in_use(self) -> Sequence[int]:
        """For each stage, the number of its blocks that run before the last of ``out_indices``."""
        raise AssertionError('a subclass defines what runs')

    def unused_modules(self) -> Iterable[nn.Module]:
        """Modules that no forward pass reaches, because they come after the last of ``out_indices``."""
        for stage, used in zip(self.stages, self.blocks_in_use()):
            if not used:
                yield stage
            elif used < len(stage.blocks):
                yield from (*stage.blocks[used:], stage.norm)

    def untrained_modules(self) -> list[nn.Module | nn.Parameter]:
        """Parameters and modules that are frozen or never run."""
        return [*self.frozen_modules(), *self.unused_modules()]

    def freeze(self) -> None:
        """Stop the gradients of the parts that ``frozen_stages`` freezes and of those that never run.

        Weights that never run stay in the state dict. But a parameter that never gets its gradient stops a training on
        several processes (``DistributedDataParallel`` without ``find_unused_parameters``).
        """
        for module in self.untrained_modules():
            module.requires_grad_(False)
        if unused := sum(p.numel() for module in self.unused_modules() for p in module.parameters()):
            logger.info(
                '%s: out_indices = %s, so what comes after the last of them never runs: %s parameters are not trained.',
                self._describe(),
                self.out_indices,
                f'{unused:,}',
            )

    def train(self, mode: bool = True):
        super().train(mode)
        for module in self.untrained_modules():
            if isinstance(module, nn.Module):
                module.eval()  # no drop path in a frozen part
        return self

    # ------------------------------------------------------------ layer decay

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Depth of a parameter for layer-wise learning-rate decay.

        Args:
            param_name: full name of the parameter.
            prefix: the text before this backbone's own names, for example ``'backbone.'``.

        Returns:
            ``(depth, number of depths)``: 0 for the first patch embedding (and a plain ViT's prefix tokens and
            positions), ``1 + k`` for the k-th block over all stages, the last for everything after the backbone. The
            patch embedding of a later stage has the depth of its first block, its norm that of its last block.
        """
        count = sum(self.arch.depths) + 2
        if not param_name.startswith(prefix):
            return count - 1, count
        parts = param_name[len(prefix) :].split('.')
        if parts[0] != 'stages':
            return 0, count  # class token, registers, positions
        stage = int(parts[1])
        before = sum(self.arch.depths[:stage])
        if parts[2] == 'blocks':
            return 1 + before + int(parts[3]), count
        if parts[2] == 'norm':
            return before + self.arch.depths[stage], count
        return (0 if stage == 0 else 1 + before), count

    # ---------------------------------------------------------------- forward

    def enter_stage(self, i: int, x: Tensor) -> tuple[Tensor, Grid]:
        """The image, or the map of stage ``i - 1``, as the tokens ``(B, P+N, C)`` that stage ``i`` starts with."""
        return self.stages[i].patch_embed(x)

    def run_block(self, i: int, j: int, tokens: Tensor, grid: Grid) -> Tensor:
        """Block ``j`` of stage ``i`` on its tokens ``(B, P+N, C)``."""
        return self.stages[i].run_block(j, tokens, grid)

    def leave_stage(self, i: int, tokens: Tensor) -> Tensor:
        """The normalised tokens ``(B, P+N, C)`` at the end of stage ``i``, which other modules read."""
        return self.stages[i].norm(tokens)

    def to_map(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Tokens ``(B, P+N, C)`` as a map ``(B, C, H, W)``, without the prefix tokens."""
        return tokens_to_map(tokens[:, self.num_prefix_tokens :], grid)

    def read(self, tokens: Tensor) -> Tensor:
        """The input of a head from the last stage's tokens ``(B, P+N, C)``: the class token or the mean, ``(B, C)``."""
        return tokens[:, 0] if self.arch.kind.reads_class_token else tokens.mean(dim=1)

    @property
    def num_prefix_tokens(self) -> int:
        """``P``, the number of prefix tokens, which have no place on the grid."""
        return self.arch.num_prefix_tokens

    def is_returned(self, index: int) -> bool:
        """Whether ``index`` is one of ``out_indices``."""
        # not `in`: torch 2.4 compiles it wrongly with dynamic=True, and the network then returns fewer maps
        return any(index == wanted for wanted in self.out_indices)

    # ---------------------------------------------------------------- helpers

    def drop_path_rates(self, rate: float) -> list[list[float]]:
        """Stochastic depth rising linearly over all blocks, ``[stage][block]`` (arXiv 2012.12877, sec. 6).

        Raises:
            ValueError: ``rate`` outside [0, 1).
        """
        if not 0 <= rate < 1:
            raise ValueError(f'drop_path_rate = {rate}: must lie in [0, 1).')
        last = max(sum(self.arch.depths) - 1, 1)
        rates = iter(range(sum(self.arch.depths)))
        return [[rate * next(rates) / last for _ in range(depth)] for depth in self.arch.depths]

    def check_indices(self, field: str, indices: int | Sequence[int], count: int) -> tuple[int, ...]:
        """``indices`` as a tuple counted from the front.

        Raises:
            ValueError: no index, an index twice, or one outside ``[-count, count)``.
        """
        indices = (indices,) if isinstance(indices, int) else tuple(indices)
        found = {i % count for i in indices if -count <= i < count}
        if not indices or len(found) < len(indices):
            raise ValueError(
                f'{field} = {indices}: {self._describe()} has indices 0 to {count - 1} (or -1 to -{count}), and at '
                'least one must be given, each once.'
            )
        return tuple(sorted(found))

    @property
    def smallest_side(self) -> int:
        """Pixels of one token of the coarsest map, or of the coarsest keys and values."""
        return max(stride * ratio for stride, ratio in zip(self.arch.strides, self.arch.sr_ratios))

    def check_image(self, x: Tensor) -> None:
        """Refuse an image that is smaller than one token.

        Raises:
            ValueError: a side below ``smallest_side``, or another number of channels than the arch.
        """
        if any(side < self.smallest_side for side in x.shape[-2:]):  # not min(): it compares the two sides
            raise ValueError(
                f'image of {x.shape[-2]}x{x.shape[-1]} pixels: {type(self).__name__} needs at least '
                f'{self.smallest_side} pixels a side, its largest stride; resize or pad the images.'
            )
        if x.shape[1] != self.arch.in_channels:
            raise ValueError(f'image with {x.shape[1]} channels: the arch has in_channels = {self.arch.in_channels}.')


def stage_modules(stage: Stage, blocks: int) -> list[nn.Module]:
    """The patch embedding and the first ``blocks`` blocks of a stage, and its norm if those are all blocks."""
    parts: list[nn.Module] = [stage.patch_embed, *stage.blocks[:blocks]]
    return [*parts, stage.norm] if blocks >= len(stage.blocks) else parts
