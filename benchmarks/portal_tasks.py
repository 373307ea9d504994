"""What people want of the portal: 25 tasks in Chromium, by what a person sees, with the seconds and clicks of each.

    python benchmarks/portal_tasks.py --repeats 3

The list is that of tests/portal_tasks.py: an archive of 1,500 rows, at 1280 x 800 with a mouse and at 390 x 844 by
touch. Seconds are from the open page to the seen answer, by a program that waits for nothing but the page; medians.
"""

import argparse
import statistics
import sys
import tempfile
import traceback
from pathlib import Path

from common import ROOT, machine, write

sys.path.insert(0, str(ROOT / "tests"))

from portal_page import chromium, serve
from portal_tasks import NARROW, TASKS, WIDE, do_task, open_world, write_world


def said(error):
    """Return where a task failed, and why."""
    lines = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.endswith("portal_tasks.py")]
    return f"{lines[-1].name if lines else ''}, {' < '.join(str(f.line) for f in lines[::-1][:3])}: {str(error)[:300]}"


def run(folder, repeats, screens, only):
    """Do all tasks; return their results."""
    paths = write_world(folder)
    url, stop = serve(open_world(paths))
    found = {task.want: {} for task in TASKS}
    with chromium(folder / "chromium") as browser:
        for touch in (name == "touch" for name in screens):
            screen = NARROW if touch else WIDE
            for task in TASKS:
                if (touch and not task.touch) or (only and task.do.__name__ not in only):
                    continue
                context = browser.browser.new_context(viewport=screen, has_touch=touch, is_mobile=touch)
                context.set_default_timeout(60_000)
                several = []
                try:
                    for _ in range(repeats):
                        several.append(do_task(task, context.new_page(), url, paths, touch=touch))
                except Exception as error:  # a task that fails is a result too
                    found[task.want]["touch" if touch else "desk"] = {"failed": said(error)}
                else:
                    seconds = statistics.median(one["seconds"] for one in several)
                    found[task.want]["touch" if touch else "desk"] = {**several[-1], "seconds": seconds}
                context.close()
                print(task.want, found[task.want], flush=True)
    stop()
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--screens", nargs="+", choices=("desk", "touch"), default=["desk", "touch"])
    parser.add_argument("--only", nargs="+", help="names of tasks in tests/portal_tasks.py", default=[])
    options = parser.parse_args()
    about = machine()
    with tempfile.TemporaryDirectory() as folder:
        tasks = run(Path(folder), options.repeats, options.screens, options.only)
    write("portal_tasks", {"repeats": options.repeats, "tasks": tasks}, about)


if __name__ == "__main__":
    main()
