"""`python -m shmcache` is the command `shmcache`."""

from shmcache.cli import main

if __name__ == "__main__":
    main(prog_name="shmcache")
