"""What several test files share: names, processes, payloads, the history checker.

Nothing here is a test.  The modules are imported as ``support.<module>``; ``conftest.py`` puts
``tests/`` on ``sys.path``, which ``multiprocessing`` hands on to spawned children.
"""
