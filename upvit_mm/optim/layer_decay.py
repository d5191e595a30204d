"""Layer-wise learning-rate decay: blocks nearer to the image get a lower learning rate (arXiv 2106.08254)."""

from __future__ import annotations

from numbers import Real

from mmengine.logging import print_log
from torch import nn

from upvit_mm.optim.decay import OptimWrapperConstructor
from upvit_mm.registry import OPTIM_WRAPPER_CONSTRUCTORS

OPTIONS = (  # those of mmengine's constructor, which accepts unknown ones without a message
    'custom_keys',
    'bias_lr_mult',
    'bias_decay_mult',
    'norm_decay_mult',
    'flat_decay_mult',
    'dwconv_decay_mult',
    'dcn_offset_lr_mult',
    'bypass_duplicate',
)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(OptimWrapperConstructor):
    """mmengine's constructor; then each learning rate is multiplied by ``rate ** (depths - 1 - depth)``.

    Depths come from a backbone's ``get_layer_depth``. So this works in every model that contains such a backbone:
    detectors of mmdet, classifiers of mmpretrain, teacher and student in one. Everything outside a backbone keeps its
    learning rate. Parameters without a gradient are left out, as in mmengine.

    Example::

        optim_wrapper = dict(
            constructor='upvit_mm.LayerDecayOptimWrapperConstructor', paramwise_cfg=dict(layer_decay_rate=0.7))

    Args:
        optim_wrapper_cfg: mmengine's; its ``optimizer`` must set ``lr``.
        paramwise_cfg: ``layer_decay_rate``, in (0, 1], where 1 changes nothing; and all options of mmengine's
            ``DefaultOptimWrapperConstructor``, which are applied first: ``norm_decay_mult``, ``bias_decay_mult``,
            ``custom_keys`` and so on. Norms, biases, positions and tokens of our backbones never decay
            (``upvit_mm.optim.limit_decay``).

    Raises:
        ValueError: no ``lr``, no rate or one out of range, or an unknown option; when it is called with a model: no
            part of it has ``get_layer_depth``.
    """

    def _validate_cfg(self) -> None:
        super()._validate_cfg()
        unknown = sorted(set(self.paramwise_cfg) - {'layer_decay_rate', *OPTIONS})
        if unknown:
            raise ValueError(
                f'optim_wrapper.paramwise_cfg has unknown key(s) {", ".join(unknown)}; {type(self).__name__} knows '
                f'layer_decay_rate, {", ".join(OPTIONS)}.'
            )
        rate = self.paramwise_cfg.get('layer_decay_rate')
        if not isinstance(rate, Real) or not 0 < rate <= 1:
            raise ValueError(
                f'optim_wrapper.paramwise_cfg.layer_decay_rate = {rate!r}: must lie in (0, 1]; ViTDet has 0.7 for '
                'twelve blocks, and 1 means no decay.'
            )
        if self.base_lr is None:
            raise ValueError('optim_wrapper.optimizer.lr is not set: layer-wise decay multiplies it, so set it.')

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = '', is_dcn_module=None) -> None:
        """Add a group for each parameter of ``module``; the outermost call then scales the learning rates."""
        super().add_params(params, module, prefix, is_dcn_module)
        if not prefix:
            self._decay(params, module)

    def _decay(self, groups: list[dict], model: nn.Module) -> None:
        backbones = layered_parts(model)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        for group in groups:
            name = names[id(group['params'][0])]
            group['lr'] = group.get('lr', self.base_lr) * self._multiplier(name, backbones)
        rates = [group['lr'] for group in groups]
        print_log(
            f'layer_decay_rate = {self.paramwise_cfg["layer_decay_rate"]}: learning rates from {min(rates):.3g} to '
            f'{max(rates):.3g}, lowest at the image',
            logger='current',
        )

    def _multiplier(self, name: str, backbones: dict[str, nn.Module]) -> float:
        for prefix, backbone in backbones.items():
            if name.startswith(prefix):
                depth, count = backbone.get_layer_depth(name, prefix)
                return self.paramwise_cfg['layer_decay_rate'] ** (count - 1 - depth)
        return 1.0


def layered_parts(model: nn.Module) -> dict[str, nn.Module]:
    """The backbones in a model that know the depth of their parameters, by the prefix of their names (``'backbone.'``).

    Raises:
        ValueError: there are none.
    """
    found = {f'{name}.' if name else '': m for name, m in model.named_modules() if hasattr(m, 'get_layer_depth')}
    # a classifier of mmpretrain has the method, too, but takes no prefix and only asks its backbone
    inner = {p: m for p, m in found.items() if not any(q != p and q.startswith(p) for q in found)}
    if not inner:
        raise ValueError(
            f'layer_decay_rate: no part of {type(model).__name__} has get_layer_depth, so no depth is known. Use a '
            'backbone of upvit_mm (or one of mmpretrain that has it), or leave the constructor out.'
        )
    return inner
