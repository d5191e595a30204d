"""Compensation: re-solving the layers of a sliced network so that it follows the dense one.

From first to last, every layer is corrected by ridge regression on unlabelled images. The input is the layer's input in
the sliced network, whose earlier layers are already corrected. The target depends on the layer:

- layers that write to the residual stream (``attn.proj``, ``mlp.fc2``): what the stream lacks, the difference between
  the dense stream, as far as the plan carries it, and the sliced one. Removed branches are part of the lack, so the
  layer before them makes up for them too;
- layers that read it (``attn.q``, ``k``, ``v``, ``mlp.gate``, ``fc1``), and PVTv2's convolutions (patch embeddings,
  spatial reductions, depth-wise filters) with the gains of the norm after a patch embedding: the dense layer's outputs,
  in the channels that stay;
- the head: the dense logits.

In a classifier whose head reads only the class token, that token counts as much as all others together. Both networks
run only once: their streams are kept and moved from layer to layer.

This is ours, not the paper's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from upvit_mm.arch import ArchSpec
from upvit_mm.pruning.batch import Batch
from upvit_mm.pruning.depth import branches
from upvit_mm.pruning.dims import table_of
from upvit_mm.pruning.full_precision import full_precision
from upvit_mm.pruning.plan import PrunePlan
from upvit_mm.pruning.ridge import ChannelSystem, LayerSystem, System
from upvit_mm.pruning.streams import Look, Room, Stream
from upvit_mm.pruning.table import block_name, ffn_readers, stage_name
from upvit_mm.pruning.walk import Walk

Report = Callable[[str, float | None], None]  # layers, share of the lack that is left; None if they were done before


@dataclass(frozen=True)
class Step:
    """Layers of the sliced network that read the same input and are solved together.

    Attributes:
        name: of the first layer.
        layers: in the sliced network.
        references: the same layers of the dense network; empty if the target is the residual stream.
        targets: from the outputs of the references to what ``layers`` should give.
        is_last: whether no other layers of the branch are solved before the one that writes to the stream.
    """

    name: str
    layers: list[nn.Module]
    references: list[nn.Module]
    targets: Callable[[list[Tensor]], list[Tensor]]
    is_last: bool = True


@torch.no_grad()
@full_precision()
def compensate(
    dense: Walk,
    sliced: Walk,
    plan: PrunePlan,
    batches: Sequence[Batch],
    ridge: float | None = None,
    report: Report | None = None,
    done: Collection[str] = (),
    memory: float | None = None,
) -> None:
    """Correct a sliced network in place.

    Memory: the streams of all images at one place, ``(images, tokens, C)`` in their dtype, twice of the dense network
    and once of the sliced one. On a GPU as many as there is room for, the others on the host.

    Args:
        dense: the network that was sliced, with its head or without.
        sliced: the network of ``plan.target_arch``.
        plan: what was kept.
        batches: unlabelled images; each is read once.
        ridge: weight of the change's square, in units of the mean square of the layer's input; None = for each step
            what explains most on images that a solution has not seen.
        report: called after each step with its name and the mean square of the lack, divided by that before.
        done: names of steps that are already corrected in ``sliced``, as given to ``report``.
        memory: see ``Room``.

    Raises:
        ValueError: networks that are not the plan's, no images, or ``ridge`` not above 0.
    """
    if ridge is not None and not ridge > 0:
        raise ValueError(
            f'ridge = {ridge}: must be above 0, or a layer with more inputs than tokens has no one solution.'
        )
    for net, arch, name in ((dense, plan.source_arch, 'dense'), (sliced, plan.target_arch, 'sliced')):
        if net.backbone.arch != arch:
            raise ValueError(f'the {name} network has another architecture than the plan.')
    room = Room(next(dense.parameters()).device, memory)
    images = [room.place(batch.images) for batch in batches]
    if not images:
        raise ValueError('there are no images to compensate with.')
    ours, theirs = (Stream(net, images, room) for net in (sliced, dense))
    _Compensation(theirs, ours, plan, ridge, report or (lambda name, left: None), done).run()


def steps_of(plan: PrunePlan, has_head: bool) -> list[str]:
    """Names of all steps, in their order."""
    arch, table, names = plan.target_arch, table_of(plan.target_arch), []
    for i, depth in enumerate(arch.depths):
        names += [f'{stage_name(i)}.patch_embed.{layer}' for layer in table.entry_layers(arch, i)]
        for j in range(depth):
            convolves = any('.dwconv.' in slot.tensor for slot in table.mlp_hidden_slots(arch, i, j))
            layers = ['attn.sr'] * (arch.sr_ratios[i] > 1) + [
                f'attn.{group[0]}' for group in _attention_groups(arch, i)
            ]
            layers += ['attn.proj', ffn_readers(arch)[0]]
            names += [f'{block_name(i, j)}.{layer}' for layer in [*layers, *['mlp.dwconv'] * convolves, 'mlp.fc2']]
    return [*names, *['head'] * has_head]


def _attention_groups(arch: ArchSpec, i: int) -> tuple[str, ...]:
    """Which of q, k and v of a stage are solved together: those that read the same tokens and alike have a bias."""
    if arch.sr_ratios[i] > 1:
        return 'q', 'kv'  # queries read all tokens
    return ('qkv',) if arch.kind.key_bias else ('qv', 'k')


class _Compensation:
    """Both streams, and the steps along them."""

    def __init__(self, theirs: Stream, ours: Stream, plan: PrunePlan, ridge, report, done):
        self.theirs, self.ours, self.plan = theirs, ours, plan
        self.ridge, self.report, self.done = ridge, report, done

    def run(self) -> None:
        theirs, ours, plan = self.theirs, self.ours, self.plan
        for i in range(plan.source_arch.num_stages):
            for step in self._entering(i):
                self._finish(step.name, lambda step=step, i=i: self._like_the_dense(step, entering=i))
            theirs.enter_stage(i)
            ours.enter_stage(i)
            sequence = [2 * block + (kind == 'mlp') for kind, block in branches(plan.kept_blocks[i])]
            after = [*sequence[1:], 2 * plan.source_arch.depths[i]]  # the dense stream before the next kept branch
            for half, (first, last) in enumerate(zip(sequence, after)):
                theirs.run_to(first)
                for step in self._reading(i, half):
                    self._finish(step.name, lambda step=step: self._like_the_dense(step))
                theirs.run_to(last)
                block, layer = ours.net.backbone.stages[i].blocks[half // 2], 'mlp.fc2' if half % 2 else 'attn.proj'
                writer = block.get_submodule(layer)
                name = f'{block_name(i, half // 2)}.{layer}'
                self._finish(name, lambda writer=writer: self._what_the_stream_lacks(writer))
                ours.run_to(half + 1)
            theirs.leave_stage()
            ours.leave_stage()
        if ours.net.head is not None:
            self._finish('head', self._like_the_dense_head)

    # ------------------------------------------------------------------ steps

    def _entering(self, i: int) -> Iterator[Step]:
        """The patch embedding of a stage."""
        name = f'{stage_name(i)}.patch_embed'
        ours, theirs = (stream.net.backbone.get_submodule(name) for stream in (self.ours, self.theirs))
        kept = self.plan.kept[f'{stage_name(i)}.embed']
        for layer in table_of(self.plan.source_arch).entry_layers(self.plan.source_arch, i):
            axis = 1 if layer == 'proj' else -1
            yield self._step(f'{name}.{layer}', [getattr(ours, layer)], [getattr(theirs, layer)], [(kept, axis, 1.0)])

    def _reading(self, i: int, half: int) -> Iterator[Step]:
        """The layers of a branch that do not write to the residual stream, in their order."""
        attn, mlp = self.plan.kept_blocks[i][half // 2]
        name, source = block_name(i, half // 2), block_name(i, mlp if half % 2 else attn)
        ours = self.ours.net.backbone.get_submodule(name)
        theirs = self.theirs.net.backbone.get_submodule(source)
        kept = self.plan.kept
        if half % 2:
            hidden = kept[f'{source}.mlp_hidden']
            convolves = ours.mlp.dwconv is not None
            readers = ffn_readers(self.plan.source_arch)
            layers, references = ([block.get_submodule(reader) for reader in readers] for block in (ours, theirs))
            ways = [(hidden, -1, 1.0)] * len(readers)
            yield self._step(f'{name}.{readers[0]}', layers, references, ways, not convolves)
            if convolves:
                yield self._step(f'{name}.mlp.dwconv', [ours.mlp.dwconv], [theirs.mlp.dwconv], [(hidden, 1, 1.0)])
            return
        qk, v, embed = kept[f'{source}.qk'], kept[f'{source}.v'], kept[f'{stage_name(i)}.embed']
        factor = self.plan.source_arch.qk_scales[i][attn] / self.plan.target_arch.qk_scales[i][half // 2]
        mine, dense = ours.attn, theirs.attn
        ways = {'q': (qk, -1, factor), 'k': (qk, -1, 1.0), 'v': (v, -1, 1.0)}  # a new scale was folded into q
        if mine.sr is not None:
            yield self._step(f'{name}.attn.sr', [mine.sr], [dense.sr], [(embed, 1, 1.0)], False)
        groups = _attention_groups(self.plan.source_arch, i)
        for group in groups:
            layers, references = ([getattr(attention, layer) for layer in group] for attention in (mine, dense))
            last = group == groups[-1]
            yield self._step(f'{name}.attn.{group[0]}', layers, references, [ways[layer] for layer in group], last)

    def _step(
        self,
        name: str,
        layers: list[nn.Module],
        references: list[nn.Module],
        ways: Sequence[tuple[Tensor, int, float]],
        is_last: bool = True,
    ) -> Step:
        """Each way: channels of the reference that stay, their axis, and a factor on them."""
        ways = [(kept.to(self.ours.device), axis, factor) for kept, axis, factor in ways]

        def targets(outputs: list[Tensor]) -> list[Tensor]:
            parts = zip(outputs, ways)
            return [factor * out.index_select(axis, kept) for out, (kept, axis, factor) in parts]

        return Step(name, layers, references, targets, is_last)

    def _finish(self, name: str, system: Callable[[], System]) -> None:
        """Solve a step that was not done before, and report it."""
        left = None
        if name not in self.done:
            left = system().solve(self.ridge, name)
        self.report(name, left)

    # ---------------------------------------------------------------- systems

    def _like_the_dense(self, step: Step, entering: int | None = None) -> System:
        system = _system_of(step.layers)
        for k in range(len(self.ours.parts)):
            dense = self.theirs.look(k, step.references, entering, whole=step.is_last)
            if step.is_last and entering is None:
                self.theirs.keep(k, dense.after)
            wanted = step.targets(dense.outputs)
            look = self.ours.look(k, step.layers, entering, whole=False)
            lacks = [target.to(now) - now for target, now in zip(wanted, look.outputs)]
            system.add(look.inputs[0], lacks, self._token_weights(look.inputs[0]))
        return system

    def _what_the_stream_lacks(self, layer: nn.Linear) -> System:
        system = LayerSystem([layer])
        for k, target in enumerate(self.theirs.parts):
            look: Look = self.ours.look(k, [layer])
            target = target.to(look.after, non_blocking=True)
            lack = self.plan.embedding(self.ours.stage, target) - look.after
            system.add(look.inputs[0], [lack], self._token_weights(look.inputs[0]))
        return system

    def _like_the_dense_head(self) -> System:
        head, dense = self.ours.net.head, self.theirs.net.head
        system = LayerSystem([head])
        for x, reference in zip(self.ours.features(), self.theirs.features()):
            system.add(x, [dense(reference).to(x) - head(x)], None)
        return system

    def _token_weights(self, x: Tensor) -> Tensor | None:
        """Roots of the weights of tokens ``(B, P+N)``; None = all alike."""
        if self.ours.net.head is None or not self.plan.target_arch.kind.reads_class_token:
            return None
        weights = x.new_ones(x.shape[:-1])
        weights[:, 0] = (x.shape[1] - 1) ** 0.5
        return weights


def _system_of(layers: Sequence[nn.Module]) -> System:
    by_channel = isinstance(layers[0], nn.LayerNorm) or getattr(layers[0], 'groups', 1) > 1
    return ChannelSystem(layers[0]) if by_channel else LayerSystem(layers)
