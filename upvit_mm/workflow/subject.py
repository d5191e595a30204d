"""What a pruning job prunes: a classifier, or a trained detector."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from upvit_mm.arch import ArchSpec
from upvit_mm.arch.size import Size, Windows
from upvit_mm.checkpoints import local_file
from upvit_mm.files import sha256_of
from upvit_mm.pruning import PrunePlan
from upvit_mm.pruning.batch import Batch
from upvit_mm.pruning.crew import Crew
from upvit_mm.pruning.criteria import Criterion
from upvit_mm.pruning.head_axes import turn_heads
from upvit_mm.pruning.stream_axes import turn_stream
from upvit_mm.pruning.table import stage_name
from upvit_mm.pruning.walk import Walk
from upvit_mm.workflow.job_images import JobImages
from upvit_mm.workflow.ledger import Ledger
from upvit_mm.workflow.prune_settings import PruneSettings

State = dict[str, Tensor]
Figures = dict[str, dict[str, float]]  # by network and measure


class Subject(ABC):
    """The network that a pruning job starts from.

    Args:
        checkpoint: file of its weights.
        device: where it runs.

    Attributes:
        scope: mmengine's scope of its config.
        result: name of the file with the pruned network.
        arch: its architecture.
        state: its tensors; those of the backbone are ``backbone.*``.
        num_classes: outputs of a classifier's head, which is counted in costs; 0 = only the backbone is counted.
        fixed: names of dims that keep their width, and ``'depths'`` if all blocks stay, with the reason.
        is_turned: whether ``take_turned`` was called.
        source_sha256: SHA-256 of the checkpoint that was turned then; None before.
        turned: names of the ``embed`` dims whose channels are directions then.

    Raises:
        FileNotFoundError: no such checkpoint.
    """

    scope: ClassVar[str]
    result: ClassVar[str]
    arch: ArchSpec
    state: State
    num_classes: int = 0
    fixed: Mapping[str, str] = {}
    is_turned: bool = False
    source_sha256: str | None = None
    turned: frozenset[str] = frozenset()

    def __init__(self, checkpoint: str, device: str = 'cpu'):
        self.checkpoint, self.device = checkpoint, device
        self._file = local_file(checkpoint)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the checkpoint's file, or of the file of the turned network."""
        return sha256_of(self._file)

    @property
    def identity(self) -> list[Any]:
        """Plain data that decide what it computes."""
        return [self.sha256, self.arch.to_dict()]

    @abstractmethod
    def criterion_name(self, settings: PruneSettings) -> str:
        """What an importance looks at, one of ``CRITERIA``."""

    @abstractmethod
    def scored(
        self,
        settings: PruneSettings,
        batches: Sequence[Batch],
        crew: Crew = Crew(),  # noqa: B008 (a frozen value)
    ) -> tuple[Walk, Criterion]:
        """The network that is scored, and what is measured at its outputs, for the proxy set of a job; the processes of
        ``crew`` share the set."""

    @abstractmethod
    def attention(self, settings: PruneSettings) -> str:
        """How heads are cut if nothing is said; one of ``ATTENTION``."""

    @cached_property
    def net(self) -> Walk:
        """The network that is repaired and compared with."""
        net = self.net_of(self.arch, self.state)
        net.turned = self.turned
        return net

    def turn(self, settings: PruneSettings, batches: Sequence[Batch]) -> State:
        """The tensors of the same network in the axes that the settings ask for (``head_axes``, ``stream_axes``)."""
        state = self.state
        if settings.attention == 'lowrank':
            state = turn_heads(self.net, state, batches)
        if settings.embed == 'rotate':
            state = turn_stream(self.net_of(self.arch, state), state, batches)
        return state

    def take_turned(self, settings: PruneSettings, state: State, sha256: str) -> None:
        """Go on with the tensors of ``turn``, which are in a file with this SHA-256."""
        self.source_sha256 = self.sha256
        self.state, self.sha256, self.is_turned = state, sha256, True
        self.turned = frozenset({f'{stage_name(0)}.embed'} if settings.embed == 'rotate' else ())
        self.__dict__.pop('net', None)

    @abstractmethod
    def net_of(self, arch: ArchSpec, state: State) -> Walk:
        """The same with another architecture and its tensors."""

    @abstractmethod
    def with_weights(self, state: State, net: Walk) -> State:
        """A pruned network's tensors with the weights that a repair has changed."""

    def repair_rest(self, state: State, plan: PrunePlan, batches: Sequence[Batch], ridge: float | None) -> State:
        """Tensors after the repair of what reads the backbone; a classifier's head is repaired with its backbone."""
        return state

    def heal(
        self, state: State, batches: Sequence[Batch], settings: PruneSettings, arch: ArchSpec, file: Path
    ) -> State:
        """Tensors after some minutes of training, see ``healing.py``; ``file`` is for resuming."""
        raise AssertionError('only detectors heal')

    @abstractmethod
    def slice(self, plan: PrunePlan) -> State:
        """The tensors that a plan leaves."""

    @abstractmethod
    def windows(self, settings: PruneSettings) -> Windows:
        """Windows of attention, for costs."""

    def blocks_in_use(self, arch: ArchSpec) -> Sequence[int] | None:
        """For each stage of a network of this kind, the number of blocks that run, for costs; None = all."""
        return None

    @property
    @abstractmethod
    def sizes(self) -> Sequence[Size]:
        """``(height, width)`` in pixels at which costs are shown; the first is that of a budget without a size."""

    @abstractmethod
    def images(
        self,
        settings: PruneSettings,
        ledger: Ledger,
        crew: Crew = Crew(),  # noqa: B008 (a frozen value)
    ) -> JobImages:
        """Images of a job with these processes."""

    @abstractmethod
    def check(self, settings: PruneSettings, scored: bool) -> None:
        """Refuse settings and weights that cannot be used.

        Args:
            settings: of the job.
            scored: whether the network's outputs decide what is removed.

        Raises:
            ValueError: which, and why.
        """

    @abstractmethod
    def check_data(self, settings: PruneSettings, proxy: bool) -> None:
        """Refuse missing data before hours of work; ``proxy``: whether images are needed before the evaluation.

        Raises:
            FileNotFoundError: a folder is missing.
            ValueError: see ``check_datasets``.
        """

    @abstractmethod
    def write_config(self, folder: Path, plan: PrunePlan) -> list[str]:
        """Write what is needed to build the pruned network; returns names of files in ``folder``."""

    @property
    def judged_by(self) -> Any:
        """Plain data that decide how it is judged, other than the network and the images."""
        return None

    @property
    def meta(self) -> dict[str, Any]:
        """More plain data for the checkpoint of the pruned network."""
        return {}

    @abstractmethod
    def judge(self, folder: Path, files: Mapping[str, str], arch: ArchSpec, images: JobImages) -> Figures:
        """Evaluate the dense network, and pruned ones of architecture ``arch``: files in ``folder`` by name."""

    @abstractmethod
    def table(self, figures: Figures) -> tuple[Sequence[str], list[Sequence[str]]]:
        """Header and rows of results, for the report."""

    @abstractmethod
    def lines(self, figures: Figures) -> list[str]:
        """The same for the terminal, one line for each network."""

    @abstractmethod
    def use(self, folder: Path, plan: PrunePlan) -> list[str]:
        """Lines of Markdown: how to go on with the files of a job."""

    @abstractmethod
    def next_steps(self, folder: Path) -> list[str]:
        """Lines for the terminal: which files there are, and the commands that use them."""
