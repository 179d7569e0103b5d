"""The most recently used values are cached."""

import threading

from dtrak.utils.latest import Latest


def test_the_latest_are_kept():
    latest = Latest(2)
    assert [latest.of(key, key.upper) for key in "ab"] == ["A", "B"]
    assert latest.of("a", lambda: "made again") == "A"
    latest.of("c", "C".lower)
    assert "a" in latest
    assert "b" not in latest
    latest.drop("a")
    latest.drop("nothing")
    assert latest.of("a", lambda: "made again") == "made again"


def test_threads_make_a_value_once():
    latest, made = Latest(1), []
    threads = [threading.Thread(target=latest.of, args=("key", lambda: made.append(1))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1]
