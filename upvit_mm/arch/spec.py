"""ArchSpec: every width of a (pruned) vision transformer as one small, validated value."""

from __future__ import annotations

import dataclasses
import itertools
import json
import operator
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upvit_mm.arch.family import Family, family_named
from upvit_mm.files import sealed, unsealed, update_text

SPEC_VERSION = 1
LARGEST = 2**16  # largest whole number: far above all real widths, so a typing error cannot fill the memory
FFNS = ('gelu', 'swiglu')
LATER = ('num_registers', 'ffn')  # fields that version 0.1 did not have
BLOCK_FIELDS = ('num_heads', 'mlp_hidden_dims', 'qk_dims', 'v_dims', 'qk_scales')

PerStage = tuple[int, ...]  # [stage]
PerBlock = tuple[tuple[int, ...], ...]  # [stage][block]
PerBlockFloat = tuple[tuple[float, ...], ...]  # [stage][block]


@dataclass(frozen=True)
class ArchSpec:
    """The architecture of one backbone: widths, never ratios.

    Widths of blocks can be given in three ways: one number (every block of every stage), one number per stage, or one
    list per stage with one number per block. All three become ``[stage][block]``. Plain ViTs are one stage.

    Attributes:
        family: ``'deit'``, ``'dinov2'``, ``'dinov3'`` or ``'pvtv2'``; sets how layers are connected.
        embed_dims: channels of the residual stream, per stage.
        depths: number of blocks, per stage.
        num_heads: attention heads, per block.
        mlp_hidden_dims: hidden channels of the feed-forward network, per block.
        qk_dims: channels of queries and keys over all heads, per block; default ``embed_dims``.
        v_dims: channels of values over all heads, per block; default ``embed_dims``.
        qk_scales: factor on the attention logits, per block; default ``(qk_dim / num_heads) ** -0.5``.
            A pruned network keeps the scale of its dense source, so that slicing changes nothing else.
        sr_ratios: stride of the spatial reduction of keys and values, per stage (PVTv2); 1 = none.
        patch_size: side of a plain ViT's patches in pixels.
        img_size: side in pixels of the training images; sets the grid of learned position embeddings.
        in_channels: channels of the input image.
        num_registers: tokens without a place after the class token (arXiv 2309.16588); plain ViTs.
        ffn: ``'gelu'``: ``fc2(gelu(fc1(x)))``; ``'swiglu'``: ``fc2(silu(gate(x)) * fc1(x))`` (arXiv 2002.05202).
        name: its name in tables; no effect on the network.

    Raises:
        ValueError: a field breaks its rule; the message names field, value and rule.
    """

    family: str
    embed_dims: PerStage
    depths: PerStage
    num_heads: PerBlock
    mlp_hidden_dims: PerBlock
    qk_dims: PerBlock | None = None
    v_dims: PerBlock | None = None
    qk_scales: PerBlockFloat | None = None
    sr_ratios: PerStage | None = None
    patch_size: int = 16
    img_size: int = 224
    in_channels: int = 3
    num_registers: int = 0
    ffn: str = 'gelu'
    name: str = ''

    def __post_init__(self):
        family_named(self.family)
        if not isinstance(self.name, str):
            raise ValueError(f'name = {self.name!r}: must be a string.')
        for field in ('patch_size', 'img_size', 'in_channels'):
            self._set(field, _positive_int(field, getattr(self, field)))
        self._set('depths', self._per_stage('depths'))
        self._set('embed_dims', self._per_stage('embed_dims'))
        if self.sr_ratios is None:
            self._set('sr_ratios', 1)
        self._set('sr_ratios', self._per_stage('sr_ratios'))
        for field in ('qk_dims', 'v_dims'):
            if getattr(self, field) is None:
                self._set(field, self.embed_dims)
        for field in ('num_heads', 'mlp_hidden_dims', 'qk_dims', 'v_dims'):
            self._set(field, self._per_block(field, _positive_int))
        self._check_heads()
        if self.qk_scales is None:
            self._set('qk_scales', self._default_scales())
        self._set('qk_scales', self._per_block('qk_scales', _positive_float))
        self._check_family()

    # ---------------------------------------------------------------- as data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ArchSpec:
        """Build from a plain mapping (a ``ConfigDict`` too), as ``to_dict`` writes it.

        ``save_json`` writes a ``sha256`` of all other keys of the file. If there is one, it must match the file's own
        content. So a file of an earlier version, without the newer fields, is still valid.

        Raises:
            ValueError: an unknown or missing key, another ``version``, a broken field rule, or another ``sha256``.
        """
        if not isinstance(data, Mapping):
            raise ValueError(f'arch = {data!r}: must be a mapping of ArchSpec fields.')
        data = unsealed({str(key): _listed(value) for key, value in data.items()}, 'arch')
        version = data.pop('version', SPEC_VERSION)
        if version != SPEC_VERSION or isinstance(version, bool):
            raise ValueError(
                f'arch version = {version!r}: this package reads version {SPEC_VERSION}; '
                'upgrade upvit_mm or write the arch again.'
            )
        fields = {f.name: f for f in dataclasses.fields(cls)}
        unknown = sorted(map(str, set(data) - set(fields)))
        if unknown:
            raise ValueError(
                f'arch (version {version}) has unknown key(s) {", ".join(unknown)}; known keys: {", ".join(fields)}. A '
                'newer upvit_mm may know them.'
            )
        required = [n for n, f in fields.items() if f.default is dataclasses.MISSING]
        missing = [n for n in required if n not in data]
        if missing:
            raise ValueError(f'arch lacks key(s) {", ".join(missing)}.')
        return cls(**data)

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-ready dict with every field resolved; ``from_dict`` gives an equal spec.

        Fields of ``LATER`` are left out at their defaults, so that earlier versions can read the file.
        """
        fields = [f for f in dataclasses.fields(self) if f.name not in LATER or getattr(self, f.name) != f.default]
        return {'version': SPEC_VERSION} | {f.name: _listed(getattr(self, f.name)) for f in fields}

    @classmethod
    def from_json(cls, path: str | os.PathLike) -> ArchSpec:
        """Read ``{"arch": {...}}``, the form that configs inherit through ``_base_``.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not JSON, no ``arch`` in it, or an invalid one.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f'arch file {str(path)!r} does not exist; give a path to an arch.json or a known arch name.'
            )
        try:
            content = json.loads(path.read_text(encoding='utf-8'))
        except (ValueError, RecursionError) as error:
            raise ValueError(f'arch file {str(path)!r} is not JSON: {error}.') from error
        if not isinstance(content, dict) or 'arch' not in content:
            raise ValueError(f'arch file {str(path)!r} must hold one object with the key "arch".')
        try:
            return cls.from_dict(content['arch'])
        except (ValueError, RecursionError) as error:
            raise ValueError(f'arch file {str(path)!r}: {error}') from error

    def save_json(self, path: str | os.PathLike) -> Path:
        """Write ``{"arch": {...}}``, with the ``sha256`` of the fields, if that changes the file; return the path."""
        fields = ',\n'.join(f'    {json.dumps(k)}: {json.dumps(v)}' for k, v in sealed(self.to_dict()).items())
        text = f'{{\n  "arch": {{\n{fields}\n  }}\n}}\n'  # one line per field, so that it reads like a table
        return update_text(path, text)

    def with_widths(self, changes: Mapping[str, Any]) -> ArchSpec:
        """This architecture with some fields changed; logit scales stay unless they are given too.

        If ``depths`` change, fields of blocks that are equal within each stage get the new number of blocks.

        Raises:
            ValueError: an unknown field, or a result that breaks a rule.
        """
        fields = self.to_dict() | {'name': ''}
        if 'depths' in changes:
            for field in BLOCK_FIELDS:
                if all(len(set(stage)) == 1 for stage in fields[field]):
                    fields[field] = [stage[0] for stage in fields[field]]
        return ArchSpec.from_dict(fields | dict(changes))

    # ---------------------------------------------------------------- derived

    @property
    def kind(self) -> Family:
        """The family of this architecture."""
        return family_named(self.family)

    @property
    def num_stages(self) -> int:
        return self.kind.num_stages

    @property
    def is_regular(self) -> bool:
        """Whether the blocks of each stage have the same widths."""
        return all(len(set(stage)) == 1 for field in BLOCK_FIELDS for stage in getattr(self, field))

    @property
    def patch_kernels(self) -> tuple[int, ...]:
        """Side of each stage's patches in pixels of its input."""
        return tuple(side or self.patch_size for side in self.kind.kernels)

    @property
    def patch_strides(self) -> tuple[int, ...]:
        """Step between each stage's patches, in pixels of its input."""
        return tuple(side or self.patch_size for side in self.kind.strides)

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels of the image per token of each stage's grid, per side."""
        return tuple(itertools.accumulate(self.patch_strides, operator.mul))

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the grid's tokens: the class token and registers."""
        return self.kind.num_class_tokens + self.num_registers

    @property
    def pos_embed_grid(self) -> int:
        """Side of the stored grid of learned position embeddings, in tokens."""
        return self.img_size // self.patch_size

    # ------------------------------------------------------------- validation

    def _set(self, field: str, value: Any) -> None:
        object.__setattr__(self, field, value)  # the dataclass is frozen for everybody else

    def _per_stage(self, field: str) -> tuple:
        value = getattr(self, field)
        values = value if _is_list(value) else (value,) * self.num_stages
        if len(values) != self.num_stages:
            raise ValueError(
                f'{field} = {_listed(value)!r}: {self.family} has {self.num_stages} stage(s), '
                f'got {len(values)} value(s).'
            )
        return tuple(_positive_int(f'{field}[{i}]', v) for i, v in enumerate(values))

    def _per_block(self, field: str, check) -> tuple:
        value = getattr(self, field)
        stages = value if _is_list(value) else (value,) * self.num_stages
        if len(stages) != self.num_stages:
            raise ValueError(
                f'{field} = {_listed(value)!r}: {self.family} has {self.num_stages} stage(s), got {len(stages)}.'
            )
        out = []
        for i, (stage, depth) in enumerate(zip(stages, self.depths)):
            blocks = stage if _is_list(stage) else (stage,) * depth
            if len(blocks) != depth:
                raise ValueError(
                    f'{field}[{i}] = {_listed(stage)!r}: stage {i} has depth {depth}, got {len(blocks)} value(s).'
                )
            out.append(tuple(check(f'{field}[{i}][{j}]', v) for j, v in enumerate(blocks)))
        return tuple(out)

    def _default_scales(self) -> PerBlockFloat:
        return tuple(
            tuple((qk / heads) ** -0.5 for qk, heads in zip(qks, heads_of_stage))
            for qks, heads_of_stage in zip(self.qk_dims, self.num_heads)
        )

    def _check_heads(self) -> None:
        for field in ('qk_dims', 'v_dims'):
            for i, widths in enumerate(getattr(self, field)):
                for j, width in enumerate(widths):
                    heads = self.num_heads[i][j]
                    if width % heads:
                        raise ValueError(
                            f'{field}[{i}][{j}] = {width}: must be a multiple of num_heads[{i}][{j}] = {heads}.'
                        )
                    if field == 'qk_dims' and self.kind.rotary and width // heads % 2:
                        raise ValueError(
                            f'{field}[{i}][{j}] = {width}: {width // heads} channels in a head; {self.family} rotates '
                            'pairs of channels, so the number must be even.'
                        )

    def _check_family(self) -> None:
        if not self.kind.reduces_keys and set(self.sr_ratios) != {1}:
            raise ValueError(
                f'sr_ratios = {list(self.sr_ratios)}: {self.family} has no spatial reduction, leave it out.'
            )
        registers = self.num_registers
        if isinstance(registers, bool) or not isinstance(registers, int) or not 0 <= registers <= LARGEST:
            raise ValueError(f'num_registers = {registers!r}: must be a whole number of at least 0.')
        if registers and not self.kind.num_class_tokens:
            raise ValueError(f'num_registers = {registers}: {self.family} has no registers, leave it out.')
        if self.ffn not in FFNS:
            raise ValueError(f'ffn = {self.ffn!r}: must be one of {", ".join(FFNS)}.')
        if self.ffn == 'swiglu' and self.kind.is_pyramid:
            raise ValueError(f'ffn = {self.ffn!r}: {self.family} has a convolution in its feed-forward network.')
        if self.img_size % self.patch_size:
            raise ValueError(f'img_size = {self.img_size}: must be a multiple of patch_size = {self.patch_size}.')


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _listed(value: Any) -> Any:
    return [_listed(v) for v in value] if _is_list(value) else value


def _positive_int(field: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST:
        raise ValueError(f'{field} = {_listed(value)!r}: must be a whole number of at least 1 and at most {LARGEST}.')
    return value


def _positive_float(field: str, value: Any) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 < value <= sys.float_info.max:  # false for NaN too
        raise ValueError(f'{field} = {_listed(value)!r}: must be a finite number above 0.')
    return float(value)
