"""The activations of many images at one place of a network, moved from layer to layer."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from upvit_mm.arch.size import Grid
from upvit_mm.pruning.walk import Walk

GIB = 2**30


class Room:
    """Memory of a GPU for activations; what does not fit waits on the host, from where a GPU reads many times slower.

    Args:
        device: the networks' device; on a CPU everything fits.
        memory: GiB; None = half of what is free now.
    """

    def __init__(self, device: torch.device, memory: float | None = None):
        self.limited = device.type == 'cuda'
        if memory is None and self.limited:
            memory = torch.cuda.mem_get_info(device)[0] / 2 / GIB
        self.left = GIB * (memory or 0)

    def place(self, tensor: Tensor) -> Tensor:
        """The same values, on the device as long as there is room; it is free again when nobody uses the tensor."""
        if not self.limited:
            return tensor
        if tensor.nbytes > self.left:
            return tensor.cpu()
        self._take(tensor.nbytes)
        weakref.finalize(tensor, self._take, -tensor.nbytes)
        return tensor

    def _take(self, size: int) -> None:
        self.left -= size


class Stream:
    """The activations of all images at one place of a network.

    Args:
        net: the network.
        images: ``(B, 3, h, w)`` by batch.
        room: where the activations wait.

    Attributes:
        parts: by batch, images or a map ``(B, c, y, x)`` between stages, tokens ``(B, P+N, C)`` within one. One batch
            at a time is used on the network's device.
        stage: number of the stage; -1 before the first.
        half: within the stage, see ``Entry``.
    """

    def __init__(self, net: Walk, images: Sequence[Tensor], room: Room):
        self.net, self.parts, self.room = net, list(images), room
        self.device = next(net.parameters()).device
        self.stage, self.half = -1, -1
        self.grids: list[Grid] = []
        self._after: dict[int, Tensor] = {}  # by batch, the stream after the next branch, where a look went so far

    def enter_stage(self, i: int) -> None:
        """From the image or map to the tokens of stage ``i``."""
        self.stage, self.half, self.grids = i, 0, []
        for k, part in enumerate(self.parts):
            tokens, grid = self.net.backbone.enter_stage(i, part.to(self.device, non_blocking=True))
            self.parts[k] = self.room.place(tokens)
            self.grids.append(grid)

    def run_to(self, half: int) -> None:
        """Run the branches before ``half``."""
        if half == self.half:
            return
        for k, part in enumerate(self.parts):
            tokens, first = part.to(self.device, non_blocking=True), self.half
            if k in self._after:
                tokens, first = self._after[k].to(self.device, non_blocking=True), first + 1
            for done in range(first, half):
                tokens = self._run(done, tokens, self.grids[k])
            self.parts[k] = self.room.place(tokens)
        self._after.clear()
        self.half = half

    def leave_stage(self) -> None:
        """Make the map for the next stage; after the last stage tokens stay tokens."""
        last = self.stage == len(self.net.backbone.stages) - 1
        for k, part in enumerate(self.parts):
            tokens = self.net.backbone.leave_stage(self.stage, part.to(self.device, non_blocking=True))
            self.parts[k] = self.room.place(tokens if last else self.net.backbone.to_map(tokens, self.grids[k]))
        self.half = -1

    def look(self, k: int, layers: Sequence[nn.Module], entering: int | None = None, whole: bool = True) -> Look:
        """What some layers of the next branch read and give for batch ``k``; the stream stays.

        Args:
            k: number of the batch.
            layers: layers of the branch.
            entering: a stage whose patch embedding runs instead of a branch.
            whole: whether the branch runs to its end; else only as far as the last of the layers.
        """
        seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

        def keep(module: nn.Module, args: tuple, output: Tensor) -> None:
            seen[module] = (args[0].clone(), output.clone())  # GELU works in place
            if not whole and len(seen) == len(layers):
                raise _AllSeenError

        handles, after = [layer.register_forward_hook(keep) for layer in layers], None
        try:
            part = self.parts[k].to(self.device, non_blocking=True)
            if entering is None:
                after = self._run(self.half, part, self.grids[k])
            else:
                after, _ = self.net.backbone.enter_stage(entering, part)
        except _AllSeenError:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return Look([seen[layer][0] for layer in layers], [seen[layer][1] for layer in layers], after)

    def keep(self, k: int, after: Tensor) -> None:
        """Remember the tokens after the next branch for batch ``k``; its weights must not change until ``run_to``."""
        self._after[k] = self.room.place(after)

    def features(self) -> list[Tensor]:
        """The input of the head by batch, ``(B, C)``."""
        return [self.net.backbone.read(part.to(self.device, non_blocking=True)) for part in self.parts]

    def _run(self, half: int, tokens: Tensor, grid: Grid) -> Tensor:
        block = self.net.backbone.stages[self.stage].blocks[half // 2]
        return block.add_mlp(tokens, grid) if half % 2 else block.add_attn(tokens, grid)


class _AllSeenError(Exception):
    """All layers were seen; the rest of the branch need not run."""


class Look:
    """What layers read and gave while a stream looked ahead.

    Attributes:
        inputs, outputs: by layer.
        after: tokens ``(B, P+N, C)`` after the branch or the patch embedding; None if it did not run to its end.
    """

    def __init__(self, inputs: list[Tensor], outputs: list[Tensor], after: Tensor | None):
        self.inputs, self.outputs, self.after = inputs, outputs, after
