"""What people want of the portal, done in Chromium with what a person sees, at a desk and on a telephone."""

import pytest
from portal_page import PATIENCE, chromium, has_chromium, serve
from portal_tasks import NARROW, TASKS, WIDE, do_task, open_world, write_world

MOST_CLICKS = 9
"""Clicks, taps and strokes of one task, at most, the longest ones included."""
SLOW = pytest.mark.slow
CASES = [
    pytest.param(
        task,
        touch,
        id=f"{task.do.__name__}-{'touch' if touch else 'desk'}",
        marks=[has_chromium, *([] if task.quick else [SLOW])],
    )
    for touch in (False, True)
    for task in TASKS
    if task.touch or not touch
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    paths = write_world(tmp_path_factory.mktemp("tasks"))
    url, stop = serve(open_world(paths))
    yield url, paths
    stop()


@pytest.fixture(scope="module")
def contexts(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("chromium")) as context:
        made = {
            False: context.browser.new_context(viewport=WIDE, accept_downloads=True),
            True: context.browser.new_context(viewport=NARROW, has_touch=True, is_mobile=True, accept_downloads=True),
        }
        yield made
        for one in made.values():
            one.close()


@pytest.mark.parametrize(("task", "touch"), CASES)
def test_a_person_can(task, touch, world, contexts):
    page, complaints = contexts[touch].new_page(), []
    page.set_default_timeout(PATIENCE)
    page.on("console", lambda m: m.type == "error" and complaints.append(m.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    found = do_task(task, page, *world, touch=touch)
    assert found["clicks"] <= MOST_CLICKS, found
    assert [text for text in complaints if "favicon" not in text] == []


def test_there_are_25_tasks_with_names_of_their_own():
    assert len(TASKS) == 25 == len({task.want for task in TASKS}) == len({task.do for task in TASKS})
    assert sum(task.touch for task in TASKS) >= 24 and sum(task.quick for task in TASKS) == 1
