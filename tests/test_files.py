"""Files: whose turn it is."""

from __future__ import annotations

import threading

from unlearnkit.files import one_at_a_time


def test_one_waits_for_the_other(tmp_path):
    """The lock belongs to an open file, so a thread that opens it anew stands for another process."""
    order = []
    started = threading.Event()

    def other():
        started.set()
        with one_at_a_time(tmp_path / "locks" / "a"):
            order.append("other")

    thread = threading.Thread(target=other)
    with one_at_a_time(tmp_path / "locks" / "a"):
        thread.start()
        assert started.wait(10)
        thread.join(0.2)
        assert thread.is_alive()
        with one_at_a_time(tmp_path / "locks" / "b"):
            order.append("first")
    thread.join(10)
    assert order == ["first", "other"]


def test_a_process_that_fails_lets_go(tmp_path):
    for _ in range(2):
        try:
            with one_at_a_time(tmp_path / "a"):
                raise KeyError
        except KeyError:
            pass


def test_nobody_waits_where_there_are_no_locks(tmp_path, monkeypatch):
    import fcntl

    def none_here(*args):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none_here)
    done = []
    with one_at_a_time(tmp_path / "a"):
        done.append(True)
    assert done == [True]
