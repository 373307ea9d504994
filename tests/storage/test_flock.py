"""The lock of an open file: taken once, shared by several, or waited for."""

import threading

from nenya.storage.flock import flock


def test_a_file_is_locked_once_until_it_is_closed(tmp_path):
    path = tmp_path / "lock"
    with path.open("w") as first, path.open() as second, path.open() as third:
        assert flock(first) and not flock(second) and not flock(second, shared=True)
        first.close()
        assert flock(second, shared=True) and flock(third, shared=True) and not flock(third)


def test_who_waits_gets_it_afterwards(tmp_path):
    path, took = tmp_path / "lock", []
    with path.open("w") as first, path.open() as second:
        assert flock(first.fileno())
        waiting = threading.Thread(target=lambda: took.append(flock(second, wait=True)))
        waiting.start()
        assert not took
        first.close()
        waiting.join(300)
        assert took == [True]
