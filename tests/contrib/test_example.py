"""The example service, run for real by its one command."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.servers import members

from shmcache import Cache

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("httpx")

RUN = Path(__file__).resolve().parents[2] / "examples" / "service" / "run.py"


def test_the_demonstration(cache_name: str) -> None:
    server = subprocess.Popen(
        [sys.executable, str(RUN), "--demo"],
        env={**os.environ, "SERVICE_CACHE": cache_name},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = server.communicate(timeout=100)
    finally:
        server.kill()
    assert server.returncode == 0, said
    assert "asked 1 time(s)" in said
    assert "prices in ['CHF']" in said
    assert "made 1 time(s)" in said
    assert re.search(r"quotes: 1, \d+ ms each; 5 handles", said), said
    assert "20 of 20 refused" in said
    assert not members(server.pid)
    with pytest.raises(FileNotFoundError):
        Cache(cache_name, create=False)
