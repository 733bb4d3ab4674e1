from __future__ import annotations

import pytest

from ddp_cli import console


def test_the_time_left_is_that_of_what_is_counted_now(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, lines = [0.0], list[str]()
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    monkeypatch.setattr(console, "note", lines.append)
    with console.progress("report") as update:
        for time, done, total, unit in ((42, 1, 1000, "thumbnails"), (62, 501, 1000, "thumbnails"),
                                        (82, 1000, 1000, "thumbnails"), (98, 1, 48, "episodes"),
                                        (118, 5, 48, "episodes"), (140, 3, 48, "files")):  # fmt: skip
            clock[0] = time
            update(done, total, unit)
    assert lines == [
        "report 1/1000 thumbnails, 42 s elapsed",
        "report 501/1000 thumbnails, 1 min 2 s elapsed, 20 s remaining",
        "report 1000/1000 thumbnails, 1 min 22 s elapsed, 0 s remaining",
        "report 1/48 episodes, 1 min 38 s elapsed",
        "report 5/48 episodes, 1 min 58 s elapsed, 3 min 35 s remaining",
        "report 3/48 files, 2 min 20 s elapsed",
    ]
