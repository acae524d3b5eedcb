"""Django's own BaseCacheTests over shmcache; `run.py` puts this beside Django's tests/cache."""

from django.core.cache import caches
from django.test import TestCase, override_settings

from .tests import BaseCacheTests, caches_setting_for_tests


@override_settings(
    CACHES=caches_setting_for_tests(
        BACKEND="shmcache.contrib.django.ShmCache",
        LOCATION="shmcache-upstream-django",
    )
)
class ShmCacheTests(BaseCacheTests, TestCase):
    def setUp(self):
        super().setUp()
        caches["default"].clear()

    def tearDown(self):
        caches["default"].clear()
        super().tearDown()
