"""What a network is, as plain data: the architecture spec and the stock architectures."""

from upvit_mm.arch.spec import ArchSpec
from upvit_mm.arch.zoo import arch_names, get_arch, resolve_arch

__all__ = ['ArchSpec', 'arch_names', 'get_arch', 'resolve_arch']
