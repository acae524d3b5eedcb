"""The backends that upstream suites take: with a name of their own, emptied where that is asked."""

from cachelib.serializers import BaseSerializer

from shmcache.contrib import cachelib


class ShmCache(cachelib.ShmCache):
    """As Flask-Caching makes it, without CACHE_ARGS."""

    def __init__(self, name="shmcache-upstream-flask", *args, **kwargs):
        super().__init__(name, *args, size="4MiB", **kwargs)


class SillySerializer(BaseSerializer):
    """cachelib's own pointless serializer."""

    def dumps(self, value):
        return repr(value).encode()

    def loads(self, bvalue):
        return eval(bvalue.decode())


class CustomCache(ShmCache):
    """A backend with another serializer."""

    serializer = SillySerializer()
