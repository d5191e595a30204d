"""Compensation: re-solving the linear layers of a sliced network so that it follows the dense one.

From first to last, each ``attn.proj``, each ``mlp.fc2`` and the head is corrected by ridge regression on unlabelled
images. The input is the layer's input in the sliced network, whose earlier layers are already corrected. The target is
the lack: the difference between the dense residual stream on the kept channels and the sliced one. In a classifier
whose head reads only the class token, that token counts as much as all patches together. Removed branches are part of
the lack, so the layer before them makes up for them too. Convolutions (PVTv2's patch embeddings, spatial reductions and
depth-wise filters) and norms stay as sliced; the next linear layer corrects their error.

Both networks run only once: their streams are kept and moved from layer to layer.

This is ours, not the paper's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor, nn

from upvit_mm.arch.size import Grid
from upvit_mm.pruning.depth import branches
from upvit_mm.pruning.importance import Batch
from upvit_mm.pruning.plan import PrunePlan
from upvit_mm.pruning.posterior import PosteriorNet
from upvit_mm.pruning.table import block_name, stage_name

logger = logging.getLogger('upvit_mm')
ROWS = 4096  # of a matrix product in single precision; the products are summed in double precision
Report = Callable[[str, float | None], None]  # layer, share of the lack that is left; None if it was done before


@torch.no_grad()
def compensate(
    dense: PosteriorNet,
    sliced: PosteriorNet,
    plan: PrunePlan,
    batches: Sequence[Batch],
    ridge: float = 1e-2,
    report: Report | None = None,
    done: Collection[str] = (),
) -> None:
    """Correct a sliced network in place.

    Memory: the streams of all images in both networks at one place, ``(images, tokens, C)`` in their dtype.

    Args:
        dense: the network that was sliced, with its head or without.
        sliced: the network of ``plan.target_arch``.
        plan: what was kept.
        batches: unlabelled images; each is read once.
        ridge: weight of the change's square, in units of the mean square of the layer's input.
        report: called after each layer with its name and the mean square of the lack, divided by that before.
        done: names of layers that are already corrected in ``sliced``, as given to ``report``.

    Raises:
        ValueError: networks that are not the plan's, no images, or ``ridge`` not above 0.
    """
    if not ridge > 0:
        raise ValueError(
            f'ridge = {ridge}: must be above 0, or a layer with more inputs than tokens has no one solution.'
        )
    for net, arch, name in ((dense, plan.source_arch, 'dense'), (sliced, plan.target_arch, 'sliced')):
        if net.backbone.arch != arch:
            raise ValueError(f'the {name} network has another architecture than the plan.')
    images = [batch.images.cpu() for batch in batches]
    if not images:
        raise ValueError('there are no images to compensate with.')
    theirs, ours = _Stream(dense, images), _Stream(sliced, images)
    for i in range(plan.source_arch.num_stages):
        theirs.enter_stage(i)
        ours.enter_stage(i)
        _correct_stage(theirs, ours, plan, ridge, report, done)
        theirs.leave_stage()
        ours.leave_stage()
    if sliced.head is not None:
        left = None
        if 'head' not in done:
            system = _System(sliced.head)
            for x, reference in zip(ours.features(), theirs.features()):
                system.add(x, dense.head(reference) - sliced.head(x), _token_weights(x, sliced))
            left = system.solve(ridge, 'head')
        if report:
            report('head', left)


def _correct_stage(
    theirs: _Stream, ours: _Stream, plan: PrunePlan, ridge: float, report: Report | None, done: Collection[str]
) -> None:
    """Correct every branch of a stage; both streams are at its start."""
    i = ours.stage
    sequence = [2 * block + (kind == 'mlp') for kind, block in branches(plan.kept_blocks[i])]
    after = [*sequence[1:], 2 * plan.source_arch.depths[i]]  # the dense stream before the next kept branch

    def finish(name: str, systems: Callable[[], list[_System]]) -> None:
        left = None if name in done else _solve(systems(), ridge, name)
        if report:
            report(name, left)

    for half, (first, last) in enumerate(zip(sequence, after)):
        theirs.run_to(first)
        finish(f'{stage_name(i)}.{half}.readers', lambda half=half: _reader_systems(theirs, ours, plan, half))
        theirs.run_to(last)
        finish(f'{stage_name(i)}.{half}', lambda half=half: [_writer_system(theirs, ours, plan, half)])
        ours.run_to(half + 1)


def _reader_systems(theirs: _Stream, ours: _Stream, plan: PrunePlan, half: int) -> list[_System]:
    """The layers of a branch that read the residual stream; their targets are the dense layers' outputs."""
    i, (attn, mlp) = ours.stage, plan.kept_blocks[ours.stage][half // 2]
    new = ours.net.backbone.stages[i].blocks[half // 2]
    if half % 2:
        old = theirs.net.backbone.stages[i].blocks[mlp]
        pairs = {'mlp_hidden': [(new.mlp.fc1, old.mlp.fc1, 1.0)]}
    else:
        old = theirs.net.backbone.stages[i].blocks[attn].attn
        folded = plan.source_arch.qk_scales[i][attn] / plan.target_arch.qk_scales[i][half // 2]
        pairs = {'qk': [(new.attn.q, old.q, folded), (new.attn.k, old.k, 1.0)], 'v': [(new.attn.v, old.v, 1.0)]}
    systems = []
    for kind, layers in pairs.items():
        kept = plan.kept[f'{block_name(i, mlp if half % 2 else attn)}.{kind}']
        for layer, dense_layer, factor in layers:
            system = _System(layer)
            for tokens, reference in zip(ours.parts, theirs.parts):
                _, wanted, _ = theirs.look(dense_layer, reference)
                x, now, _ = ours.look(layer, tokens)
                wanted = factor * wanted.index_select(-1, kept.to(wanted.device))
                system.add(x, wanted.to(now) - now, _token_weights(x, ours.net))
            systems.append(system)
    return systems


def _writer_system(theirs: _Stream, ours: _Stream, plan: PrunePlan, half: int) -> _System:
    """The layer of a branch that writes to the residual stream; its target is what the stream lacks after it."""
    block = ours.net.backbone.stages[ours.stage].blocks[half // 2]
    layer = block.mlp.fc2 if half % 2 else block.attn.proj
    system = _System(layer)
    for tokens, target in zip(ours.parts, theirs.parts):
        x, _, now = ours.look(layer, tokens)
        lack = plan.embedding(ours.stage, target).to(now) - now
        system.add(x, lack, _token_weights(x, ours.net))
    return system


def _solve(systems: list[_System], ridge: float, name: str) -> float:
    """Correct layers that do not depend on one another; returns the share of their lack that is left."""
    before = sum(system.square for system in systems)
    after = sum(system.square * system.solve(ridge, name) for system in systems)
    return after / before if before else 0.0


class _Stream:
    """The activations of all images at one place of a network.

    Attributes:
        parts: by batch, images or a map ``(B, c, y, x)`` between stages, tokens ``(B, P+N, C)`` within one. They stay
            in host memory, and one batch at a time goes to the network's device, so a GPU need not hold them all.
    """

    def __init__(self, net: PosteriorNet, images: Sequence[Tensor]):
        self.net, self.parts = net, list(images)
        self.device = next(net.parameters()).device
        self.stage, self.half = -1, 0
        self.grid: Grid | None = None

    def enter_stage(self, i: int) -> None:
        self.stage, self.half = i, 0
        for k, part in enumerate(self.parts):
            tokens, self.grid = self.net.backbone.enter_stage(i, part.to(self.device))
            self.parts[k] = tokens.cpu()

    def run_to(self, half: int) -> None:
        """Run the branches before ``half``, see ``Entry``."""
        for k, part in enumerate(self.parts):
            tokens = part.to(self.device)
            for done in range(self.half, half):
                tokens = self._run(done, tokens)
            self.parts[k] = tokens.cpu()
        self.half = half

    def look(self, layer: nn.Linear, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Input ``(B, n, in)`` and output ``(B, n, out)`` of a layer of the next branch, and the tokens after that
        branch; the stream stays."""
        seen: list[Tensor] = []
        handle = layer.register_forward_hook(
            lambda module, args, output: seen.extend((args[0].clone(), output.clone()))
        )
        try:
            out = self._run(self.half, tokens.to(self.device))
        finally:
            handle.remove()
        return seen[0], seen[1], out

    def leave_stage(self) -> None:
        """Make the map for the next stage; after the last stage tokens stay tokens."""
        last = self.stage == len(self.net.backbone.stages) - 1
        for k, part in enumerate(self.parts):
            tokens = self.net.backbone.leave_stage(self.stage, part.to(self.device))
            self.parts[k] = (tokens if last else self.net.backbone.to_map(tokens, self.grid)).cpu()

    def features(self) -> list[Tensor]:
        """The input of the head by batch, ``(B, C)``."""
        return [self.net.backbone.read(part.to(self.device)) for part in self.parts]

    def _run(self, half: int, tokens: Tensor) -> Tensor:
        block = self.net.backbone.stages[self.stage].blocks[half // 2]
        return block.add_mlp(tokens, self.grid) if half % 2 else block.add_attn(tokens, self.grid)


class _System:
    """The normal equations of ``input @ change = lack`` for a layer, with a column of ones for its bias."""

    def __init__(self, layer: nn.Linear):
        self.layer, size = layer, layer.in_features + 1
        double = dict(dtype=torch.float64, device=layer.weight.device)
        self.gram, self.moment = torch.zeros(size, size, **double), torch.zeros(size, layer.out_features, **double)
        self.rows, self.square = 0, 0.0

    def add(self, x: Tensor, lack: Tensor, weights: Tensor) -> None:
        """Add rows: inputs ``(..., in)``, the lack ``(..., out)`` and the roots of weights ``(...)``."""
        weights = weights.flatten()[:, None].to(x)
        x, lack = x.flatten(0, -2), lack.flatten(0, -2) * weights
        x = torch.cat([x, x.new_ones(len(x), 1)], dim=1) * weights  # (rows, in + 1)
        for rows, missing in zip(x.split(ROWS), lack.split(ROWS)):
            self.gram += rows.T @ rows
            self.moment += rows.T @ missing
        self.rows += len(x)
        self.square += lack.double().square().sum().item()

    def solve(self, ridge: float, name: str) -> float:
        """Correct the layer; returns the share of the lack that is left."""
        gram, moment, size = self.gram, self.moment, len(self.gram)
        if self.rows < 2 * size:
            logger.warning(
                'compensation of %s has %d samples for %d inputs and may fit them alone; use more images.',
                name,
                self.rows,
                size,
            )
        eye = torch.eye(size, dtype=gram.dtype, device=gram.device)
        change = torch.linalg.solve(gram + ridge * gram.diagonal().mean() * eye, moment)
        self.layer.weight += change[:-1].T.to(self.layer.weight)
        self.layer.bias += change[-1].to(self.layer.bias)
        explained = (2 * (change * moment).sum() - (change * (gram @ change)).sum()).item()
        return 1 - explained / self.square if self.square else 0.0


def _token_weights(x: Tensor, net: PosteriorNet) -> Tensor:
    """Root of the weight of every row: ``(B, P+N)`` for tokens ``(B, P+N, C)``, ``(B,)`` for vectors ``(B, C)``."""
    weights = x.new_ones(x.shape[:-1])
    prefix = net.backbone.num_prefix_tokens
    if net.head is not None and prefix and x.ndim == 3 and x.shape[1] > prefix:
        weights[:, :prefix] = ((x.shape[1] - prefix) / prefix) ** 0.5
    return weights
