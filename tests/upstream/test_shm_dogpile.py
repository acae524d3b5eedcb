"""dogpile.cache's own backend fixtures over shmcache."""

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event

from dogpile.testing import eq_
from dogpile.testing.fixtures import (
    _GenericBackendFixture,
    _GenericBackendTestSuite,
    _GenericMutexTestSuite,
    _GenericSerializerTestSuite,
)

ARGUMENTS = {"name": "shmcache-upstream-dogpile", "size": "4MiB", "foo": "barf"}


class TestShm(_GenericBackendTestSuite):
    backend = "shmcache"
    config_args = {"arguments": ARGUMENTS}


class TestShmSerializer(_GenericSerializerTestSuite, TestShm):
    pass


class TestShmDistributed(_GenericBackendTestSuite):
    backend = "shmcache"
    config_args = {"arguments": {**ARGUMENTS, "distributed_lock": True}}


class TestShmDistributedMutex(_GenericMutexTestSuite):
    backend = "shmcache"
    config_args = {"arguments": {**ARGUMENTS, "distributed_lock": True}}


class TestShmAsyncCreation(_GenericBackendFixture):
    backend = "shmcache"
    config_args = {"arguments": {**ARGUMENTS, "distributed_lock": True}}

    def test_the_thread_of_an_async_creator_releases_the_mutex(self):
        released = Event()
        with ThreadPoolExecutor(max_workers=1) as pool:

            def create_later(cache, key, creator, mutex):
                def call():
                    try:
                        cache.set(key, creator())
                    finally:
                        mutex.release()
                        released.set()

                return pool.submit(call)

            region = self._region(
                region_args={"async_creation_runner": create_later},
                config_args={"expiration_time": 0.1},
            )

            @region.cache_on_arguments()
            def double(text):
                return text * 2

            eq_(double("asd"), "asdasd")
            time.sleep(0.3)  # past the region's expiration time, which is by the wall clock
            eq_(double("asd"), "asdasd")
            assert released.wait(10)
