"""Pruning is tested on all families."""

import pytest

from upvit_mm.arch.family import FAMILIES


@pytest.fixture(params=list(FAMILIES))
def family(request) -> str:
    return request.param
