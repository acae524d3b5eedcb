"""Attach to a cache in the test build, arm one fault point, and overwrite a key until it fires.

``python -P fault_child.py CACHE POINT ACTION``; prints ``attached`` before it arms the point.
Without a point it exits with 0 after its writes.
"""

from __future__ import annotations

import sys

from shmcache import Cache, _core
from support import payloads

WRITES = 3


def main() -> None:
    name, point, action = sys.argv[1:]
    with Cache(name, create=False) as cache:
        cache.get("stopped")
        print("attached", flush=True)
        _core.set_fault(_core.FAULT_POINTS[point], 1, action)
        for stamp in range(1, WRITES + 1):
            cache["stopped"] = payloads.make("stopped", stamp, 400)


if __name__ == "__main__":
    main()
