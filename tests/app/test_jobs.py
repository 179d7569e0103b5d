"""Jobs queue, report, cancel and fail without taking the worker down; runs keep and give back settings."""

import threading
import time

import numpy as np
import pytest

from dtrak.app.jobs import JobQueue
from dtrak.app.runs import RunStore, png_bytes, read_settings
from dtrak.models.generation import GenerationSettings
from dtrak.utils.errors import DtrakError
from tests.helpers import wait_until


def test_jobs_run_in_order_and_show_their_place():
    queue, gate, order = JobQueue(), threading.Event(), []
    first = queue.submit("a", lambda job: (gate.wait(5), order.append("a")))
    second = queue.submit("b", lambda job: order.append("b"))
    third = queue.submit("c", lambda job: order.append("c"))
    wait_until(lambda: first.state == "running")
    assert [queue.position(job) for job in (first, second, third)] == [0, 1, 2]
    assert queue.submit("b", lambda job: None) is second
    gate.set()
    wait_until(lambda: third.state == "done")
    assert order == ["a", "b", "c"]


def test_cancel_stops_running_and_queued_jobs():
    queue = JobQueue()

    def endless(job):
        while True:
            job.progress(1, 2)
            time.sleep(0.005)

    running, waiting = queue.submit("a", endless), queue.submit("b", endless)
    wait_until(lambda: running.done == 1)
    waiting.cancel()
    running.cancel()
    wait_until(lambda: running.state == waiting.state == "cancelled", 1.0)
    assert waiting.done == 0


def test_a_job_that_has_not_begun_can_be_dropped():
    queue, gate, done = JobQueue(), threading.Event(), []
    running, waiting = queue.submit("a", lambda job: gate.wait(5)), queue.submit("b", lambda job: done.append("b"))
    wait_until(lambda: running.state == "running")
    queue.drop(running)
    queue.drop(waiting)
    assert (running.state, waiting.state) == ("running", "cancelled")
    assert queue.get("b") is None
    gate.set()
    last = queue.submit("c", lambda job: done.append("c"))
    wait_until(lambda: last.state == "done")
    assert done == ["c"]


def test_a_failing_job_leaves_the_worker_alive():
    queue = JobQueue()

    def fail(job):
        raise DtrakError("broken", hint="mend it")

    failed = queue.submit("a", fail)
    after = queue.submit("b", lambda job: 7)
    wait_until(lambda: after.state == "done")
    assert failed.state == "failed"
    assert failed.error.hint == "mend it"
    assert after.result == 7


def test_a_png_carries_its_settings(tmp_path):
    settings = GenerationSettings(12, 30, "round", 2.0)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    store = RunStore(tmp_path)
    run = store.save_generated("model", settings, pixels)
    assert read_settings(store.image_bytes(run)) == settings
    again = store.load(run.id)
    assert again.settings == settings
    np.testing.assert_array_equal(again.pixels, pixels)
    assert [r.id for r in store.latest(3)] == [run.id]


@pytest.mark.parametrize(
    "content",
    [b"", b"junk", png_bytes(np.zeros((2, 2, 3), np.uint8), None)]
    + [
        png_bytes(np.zeros((2, 2, 3), np.uint8), {"seed": s, "steps": n, "label": None, "guidance": 1.0})
        for s, n in ((-1, 5), (1, 10**9), ("x", 5))
    ],
)
def test_foreign_or_absurd_settings_are_refused(content):
    with pytest.raises(DtrakError):
        read_settings(content)


@pytest.mark.parametrize("run_id", ["", "../x", "nothing"])
def test_unknown_runs_are_none(tmp_path, run_id):
    assert RunStore(tmp_path).load(run_id) is None
