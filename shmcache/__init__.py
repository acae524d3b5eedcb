"""shmcache."""
