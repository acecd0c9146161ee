"""What stands in a row: JSON as it came, never a pickle. The stock library needs it to open our file."""

from __future__ import annotations

from typing import Any

import orjson


class EventSerializer:
    """What the stock library needs to read and write our rows: JSON, never pickle. Bytes are stored as they are."""

    @staticmethod
    def dumps(item: Any, *_: Any, **__: Any) -> bytes:
        """Return the bytes to store; raises TypeError for what JSON cannot say."""
        return item if isinstance(item, bytes) else orjson.dumps(item)

    @staticmethod
    def loads(stored: bytes | str) -> Any:
        """Return what the stored bytes say; raises ValueError if they are not JSON."""
        return orjson.loads(stored)

    @classmethod
    def dump(cls, item: Any, fp: Any, *_: Any, **__: Any) -> None:
        """Write `dumps(item)` to a binary file."""
        fp.write(cls.dumps(item))

    @classmethod
    def load(cls, fp: Any) -> Any:
        """Read one item from a binary file."""
        return cls.loads(fp.read())


serializer = EventSerializer()
