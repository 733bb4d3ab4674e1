"""Pages in headless Chromium, as a person uses them. Every page is checked for errors and requests, see `open_page`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ddp, ok
from report.browser import PHONE, open_page, shown
from report.conftest import HOSTILE, evaluation, write_json
from report.test_page import write_run

from ddp_cli.data.store import Store
from ddp_cli.report.page import render_page
from ddp_cli.video.video import VideoWriter


@pytest.fixture(scope="module")
def dataset_page(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    page = tmp_path_factory.mktemp("page") / "page.html"
    ok(ddp("report", store.path, "--out", page, "--episodes", 3))
    return page


def test_a_click_on_an_episode_shows_it_and_the_keyboard_moves_through_it(
    browser: Any, dataset_page: Path, store: Store
) -> None:
    positions = store.read("pos")
    with open_page(browser, dataset_page) as opened:
        page = opened.page
        assert opened.text(".episode h4").startswith("Episode 0, 20 steps")
        page.locator("tr[data-episode='1']").click()
        assert opened.text(".episode h4").startswith("Episode 1, 30 steps")
        assert opened.legend(0) == shown(positions[20])
        for _ in range(7):
            page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("Shift+ArrowRight")
        assert opened.step() == 16
        # The brightness of the camera `top` is 8 times the step; the other one is red. Videos are lossy.
        assert opened.frame(0) == pytest.approx([128] * 3, abs=3)
        assert opened.frame(1) == pytest.approx([220, 0, 0], abs=8)
        assert opened.legend(0) == shown(positions[36])
        assert opened.legend(1) == shown(store.read("action")[36])
        page.keyboard.press("ArrowDown")
        assert opened.text(".episode h4").startswith("Episode 2, 25 steps")
        assert "not shown in full" in opened.text(".episode")
        page.keyboard.press("ArrowDown")
        assert opened.text(".episode h4").startswith("Episode 3, 22 steps")
        assert opened.step() == 0
        assert opened.frame(0) == pytest.approx([0] * 3, abs=3)


def test_a_click_on_a_curve_moves_videos_and_cursor(browser: Any, dataset_page: Path, store: Store) -> None:
    with open_page(browser, dataset_page) as opened:
        over = opened.page.locator(".episode .u-over").nth(1)
        over.scroll_into_view_if_needed()
        box = over.bounding_box()
        over.click(position={"x": box["width"] * 12 / 19, "y": box["height"] / 2})  # steps 0 to 19
        assert opened.step() == 12
        assert opened.frame(0) == pytest.approx([96] * 3, abs=3)
        assert opened.legend(0) == shown(store.read("pos")[12])
        for chart in (0, 1):
            cursor = opened.page.locator(".episode .u-cursor-x").nth(chart).bounding_box()
            curve = opened.page.locator(".episode .u-over").nth(chart).bounding_box()
            assert cursor["x"] - curve["x"] == pytest.approx(curve["width"] * 12 / 19, abs=2)


def test_videos_beside_the_page_are_shown(browser: Any, store: Store, tmp_path: Path) -> None:
    page = tmp_path / "50% #1.html"
    ok(ddp("report", store.path, "--out", page, "--episodes", 1, "--max-mb", 0))
    with open_page(browser, page) as opened:
        for video in opened.page.locator("video").all():
            # Its pixels cannot be read: a file is of another origin than the page.
            video.evaluate(
                "(video) => video.readyState || video.error || "
                "new Promise((done) => { video.onloadeddata = video.onerror = () => done(); })"
            )
            assert video.evaluate("(video) => video.duration") == pytest.approx(3.0)  # 30 steps at 10 Hz


def test_an_episode_plays_to_its_end(browser: Any, dataset_page: Path) -> None:
    with open_page(browser, dataset_page) as opened:
        opened.page.keyboard.press("Space")
        opened.page.locator(".step", has_text="step 19 of 19").wait_for()
        assert opened.frame(0) == pytest.approx([152] * 3, abs=3)
        assert opened.text(".play") == "play"


def test_hostile_names_are_text(browser: Any, dataset_page: Path, tmp_path: Path) -> None:
    hostile = evaluation([True, False], checkpoint=HOSTILE, task=HOSTILE, engine=HOSTILE)
    for episode in hostile["episodes"]:
        episode["start"] = {HOSTILE: [0.0, 1.0]}
    folder = tmp_path / "<img src=x onerror='window.hacked=3'>"
    run = write_run(folder / HOSTILE.replace("/", "_"))
    ok(ddp("report", write_json(folder / "e.json", hostile), run, "--out", folder / "page.html"))
    policy = {"kind": "policy", "title": HOSTILE, "facts": [[HOSTILE, HOSTILE]], "schema": [[HOSTILE] * 6],
              "normalization": [{"label": HOSTILE, "normalization": "range", "low": 0, "high": 1}],
              "files": [[HOSTILE, 1]], "proof": [HOSTILE], "latency": None, "is_exported": True}  # fmt: skip
    (folder / "policy.html").write_text(render_page(HOSTILE, [policy], {}))
    for path in (dataset_page, folder / "page.html", folder / "policy.html"):
        with open_page(browser, path) as opened:
            opened.page.wait_for_timeout(100)
            assert opened.page.evaluate("window.hacked") is None
            assert opened.page.locator("img[src=x], b").count() == 0
            assert HOSTILE in opened.page.locator("body").text_content()


def test_episodes_are_sorted_and_linked(browser: Any, dataset_page: Path) -> None:
    with open_page(browser, dataset_page) as opened:
        opened.page.get_by_role("button", name="steps").click()
        lengths = opened.page.locator(".episodes tbody td:nth-child(3)").all_inner_texts()
        assert lengths == ["20", "22", "25", "30"]
        opened.page.locator(".findings a").first.click()
        assert opened.text(".episode h4").startswith("Episode 1")
        assert opened.page.url.endswith("#section-0-episode-1")
        opened.page.keyboard.press("ArrowUp")  # in the order of the list
        assert opened.text(".episode h4").startswith("Episode 2")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_a_phone(browser: Any, dataset_page: Path, tmp_path: Path, scheme: str) -> None:
    run = write_run(tmp_path / "lift" / "a")
    paths = [write_json(tmp_path / f"{name}.json", evaluation([True, False] * 30)) for name in "ab"]
    ok(ddp("report", *paths, run, "--out", tmp_path / "page.html"))
    for path in (dataset_page, tmp_path / "page.html"):
        with open_page(browser, path, PHONE, color_scheme=scheme) as opened:
            assert opened.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
            color = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (color == "rgb(255, 255, 255)") == (scheme == "light")


def test_evaluations_side_by_side(browser: Any, tmp_path: Path) -> None:
    first = write_json(tmp_path / "a.json", evaluation([True, True, False, False]))
    second = write_json(tmp_path / "b.json", evaluation([True, False, True, False]))
    ok(ddp("report", first, second, "--out", tmp_path / "page.html"))
    with open_page(browser, tmp_path / "page.html") as opened:
        page = opened.page
        assert [page.locator(f".row:nth-child({i}) .cell.success").count() for i in (1, 2)] == [2, 2]
        assert page.locator(".cell.differs").count() == 4
        assert "Different outcomes: seeds 101, 102." in opened.text(".paired")
        page.locator(".row:nth-child(2) [data-seed='102']").click()
        assert "b: success at step 42" in opened.text(".start")
        assert "a: no success after step 400" in opened.text(".start")
        assert "nut_pos 0.2, 0.18, 0.8" in opened.text(".start")
        page.keyboard.press("ArrowDown")
        assert opened.text(".start h4") == "Seed 103"
        page.locator("svg .point[data-id='101'] .target").first.click()
        assert opened.text(".start h4") == "Seed 101"


def test_films_of_a_training_are_chosen_by_checkpoint(browser: Any, tmp_path: Path) -> None:
    run = write_run(tmp_path / "lift" / "a")
    (run / "videos").mkdir()
    for step, brightness in ((10, 40), (20, 200)):
        with VideoWriter(run / f"videos/step-{step:08}.mp4", 20.0) as video:
            for _ in range(5):
                video.add(np.full((64, 64, 3), brightness, np.uint8))
    ok(ddp("report", run, "--out", tmp_path / "page.html"))
    with open_page(browser, tmp_path / "page.html") as opened:
        opened.page.locator(".step", has_text="of 4").wait_for()
        opened.page.keyboard.press("ArrowRight")
        assert (opened.step(), opened.frame()) == (1, pytest.approx([200] * 3, abs=6))
        opened.page.locator(".film").locator("xpath=..").locator("select").select_option("step 10")
        opened.page.locator(".step", has_text="of 4").wait_for()
        assert (opened.step(), opened.frame()) == (0, pytest.approx([40] * 3, abs=6))


def test_a_sweep_shows_success_against_latency(browser: Any, tmp_path: Path) -> None:
    reports = [evaluation([True, i > 1], inference_steps=i, chunk_ms=3.0 * i) for i in (1, 4, 16)]
    ok(ddp("report", write_json(tmp_path / "s.json", {"sweep": reports}), "--out", tmp_path / "page.html"))
    with open_page(browser, tmp_path / "page.html") as opened:
        chart = opened.page.locator("figure", has_text="success rate against latency")
        assert chart.locator(".point .tick").all_text_contents() == ["1", "4", "16"]
        heights = [float(x.get_attribute("cy")) for x in chart.locator(".point circle").all()]
        assert heights[0] > heights[1] == heights[2]


def test_a_thousand_starts_are_scrolled_to_the_selected_one(browser: Any, tmp_path: Path) -> None:
    paths = [write_json(tmp_path / f"{name}.json", evaluation([name == "a"] * 1000)) for name in "ab"]
    ok(ddp("report", *paths, "--out", tmp_path / "page.html"))
    with open_page(browser, tmp_path / "page.html", PHONE) as opened:
        assert "118, 119 and 980 more." in opened.text(".paired")
        opened.page.locator(".row:nth-child(1) [data-seed='1099']").click()
        for row in (1, 2):
            cells = opened.page.locator(f".row:nth-child({row}) .cells").bounding_box()
            cell = opened.page.locator(f".row:nth-child({row}) [data-seed='1099']").bounding_box()
            assert cells["height"] < PHONE["height"] / 2
            assert cells["y"] < cell["y"] < cell["y"] + cell["height"] < cells["y"] + cells["height"]


def test_points_without_a_place_on_the_chart_are_left_out(browser: Any, tmp_path: Path) -> None:
    reports = [evaluation([True], inference_steps=i, chunk_ms=ms) for i, ms in ((1, 0.0), (4, 12.0), (8, 24.0))]
    reports.append(evaluation([True], inference_steps=16, chunk_ms=None))
    reports[1]["episodes"][0]["start"] = {"nut_pos": [1e16, 1e308]}
    reports[2]["episodes"][0]["start"] = {"nut_pos": [1e16 + 2, -1e308]}
    ok(ddp("report", write_json(tmp_path / "s.json", {"sweep": reports}), "--out", tmp_path / "page.html"))
    with open_page(browser, tmp_path / "page.html") as opened:
        chart = opened.page.locator("figure", has_text="success rate against latency")
        assert chart.locator(".point .tick").all_text_contents() == ["4", "8"]
        assert opened.page.locator("figure", has_text="at the start").count() == 1
