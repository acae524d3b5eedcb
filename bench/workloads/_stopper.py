"""A process that is stopped inside a shard whenever it is told to; see stopped_writer.py.

Run as a script with the fault build on PYTHONPATH: `_stopper.py CACHE POINT`.  Each line on its
standard input makes one `set` that stops at the fault point; a line on its standard output says
that a set has returned, which happens after a SIGCONT.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Serve the lines on standard input until it is closed."""
    from shmcache import Cache, _core

    name, point = sys.argv[1], sys.argv[2]
    cache = Cache(name, create=False)
    number = _core.FAULT_POINTS[point]  # type: ignore[attr-defined]
    print("ready", flush=True)
    for line in sys.stdin:
        _core.set_fault(number, action="stop")  # type: ignore[attr-defined]
        cache.set("stopper", line.encode())
        print("returned", flush=True)
    cache.close()


if __name__ == "__main__":
    main()
