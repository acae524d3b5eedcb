"""The Celery application that tests of the real worker use; its broker is a folder."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from celery import Celery

from support import served_app

FOLDER = Path(os.environ["SHMCACHE_BROKER"])

app = Celery("support.celery_app", broker="filesystem://")
app.conf.update(
    broker_transport_options={
        "data_folder_in": str(FOLDER),
        "data_folder_out": str(FOLDER),
        "control_folder": str(FOLDER / "control"),
        "polling_interval": 0.02,
    },
    task_ignore_result=True,
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
)


@app.task
def compute(key: str) -> None:
    """Ask for a value that all processes share, and count that it has come."""
    value = served_app.value_of(key)
    assert key in value
    served_app.cache.incr("done")
    served_app.cache.add(f"worker {os.getpid()}", True)


@app.task
def perish() -> None:
    """End the worker process in the middle of a task, as the kernel would for want of memory; the
    task is delivered again, and then does nothing."""
    if served_app.cache.add("died", os.getpid()):
        os.kill(os.getpid(), signal.SIGKILL)
