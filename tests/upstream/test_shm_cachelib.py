"""cachelib's own common tests over shmcache; `run.py` puts this beside cachelib's tests."""

import pytest
from cachelib_shm import CustomCache, ShmCache
from clear import ClearTests
from common import CommonTests
from delete_many_with_prefix import DeleteManyWithPrefixTests
from has import HasTests
from serializer import SerializerTests


@pytest.fixture(autouse=True, params=[ShmCache, CustomCache])
def cache_factory(request, key_prefix):
    def factory(self, *args, **kwargs):
        kwargs.setdefault("key_prefix", key_prefix)
        cache = request.param("shmcache-upstream-cachelib", *args, **kwargs)
        cache.clear()
        return cache

    request.cls.cache_factory = factory


class TestShmCache(CommonTests, ClearTests, HasTests, DeleteManyWithPrefixTests, SerializerTests):
    def test_add_on_expired_key_succeeds(self):
        cache = self.cache_factory()
        cache.set("key", "original", timeout=-1)
        assert cache.add("key", "new") is True
        assert cache.get("key") == "new"

    def test_delete_nonexistent_returns_false(self):
        assert self.cache_factory().delete("does_not_exist") is False
