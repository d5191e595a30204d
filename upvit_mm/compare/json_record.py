"""Frozen records of what the tools write as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

Record = TypeVar('Record', bound='JsonRecord')


class JsonRecord:
    """Base of frozen dataclasses whose fields are keys of a JSON object; keys without a field are ignored."""

    @classmethod
    def of(cls: type[Record], content: Mapping[str, Any]) -> Record:
        """From the content of a file, which must have all of ``keys()``."""
        return cls(**{f.name: content[f.name] for f in dataclasses.fields(cls) if f.name in content})

    @classmethod
    def keys(cls) -> tuple[str, ...]:
        """Names of the fields without a default, which every file has."""
        nothing = (dataclasses.MISSING, dataclasses.MISSING)
        return tuple(f.name for f in dataclasses.fields(cls) if (f.default, f.default_factory) == nothing)
