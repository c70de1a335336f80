"""Where time goes: every second of the main thread is counted once, and only while somebody asks."""

import json
import threading
import time

import pytest

from command import narrows
from narrows.stopwatch import spent, timed, timing


def test_a_second_is_counted_once():
    with timing() as watch:
        with spent("outer"):
            time.sleep(0.02)
            with spent("inner"):
                time.sleep(0.05)
        assert list(timed("waited", iter([1, 2]))) == [1, 2]
    told = watch.to_json()
    assert told["inner"] >= 0.05 and told["outer"] >= 0.02
    parts = sum(seconds for what, seconds in told.items() if what != "total")
    assert parts == pytest.approx(told["total"], abs=0.005)
    assert set(told) == {"inner", "outer", "waited", "other", "total"}


def test_nothing_is_counted_where_nobody_asks():
    with timing() as watch:
        pass
    with spent("later"):
        time.sleep(0.001)
    assert not watch.seconds


def test_what_another_thread_does_stands_apart():
    def work():
        with spent("reading"):
            time.sleep(0.02)

    with timing() as watch:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    told = watch.to_json()
    assert told["reading (beside)"] >= 0.02
    assert told["other"] == pytest.approx(told["total"], abs=0.005)


def test_a_failure_is_counted_too():
    with timing() as watch, pytest.raises(ValueError, match="broken"), spent("failing"):
        raise ValueError("broken")
    assert "failing" in watch.seconds


@pytest.mark.parametrize("budget", ["2e9", "0"])
def test_fit_says_where_its_time_went(tmp_path, budget):
    words = ["fit", "digits", "--epochs", 2, "--budget", budget, "--out", "m.narrows", "--profile"]
    told = json.loads(narrows(*words, "--json", cwd=tmp_path).stdout)["profile"]
    named = {"read", "statistics", "batches", "forward", "backward", "update", "validate", "write", "diagnosis"}
    assert named < {what.removesuffix(" (beside)") for what in told}
    own = sum(seconds for what, seconds in told.items() if what != "total" and not what.endswith("(beside)"))
    assert own == pytest.approx(told["total"], abs=0.02)
    assert "where the time went" in narrows(*words, cwd=tmp_path).stdout
