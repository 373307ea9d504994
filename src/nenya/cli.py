"""The `nenya` command and the scripts: Hydra in, one call out, one line and an exit code for each error."""

import importlib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence

import nenya
from nenya.commands.completion import script
from nenya.commands.compose import command_names, compose, given_twice, hydra_answers, module_of, set_up_logging
from nenya.commands.help import help_text, overview, topic_text
from nenya.commands.network import with_network
from nenya.errors import Interrupted, NenyaError
from nenya.options.declare import suggest
from nenya.storage.s3.access import s3_access
from nenya.storage.texts import Lines, cut, first_words, printed, say

log = logging.getLogger(__name__)

_PIPE = 141  # the exit code that shells give a command ended by SIGPIPE
HYDRA_FLAGS = ("--help", "-h", "--cfg", "-c", "--info", "-i", "--package", "-p")


def main(argv: Sequence[str] | None = None) -> int:
    """Run `nenya COMMAND key=value ...`, or answer `nenya help TOPIC`.

    Returns:
        The exit code: 0 done, 1 some of several files failed, 2 bad input, option or environment, 75 interrupted.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    return _until_closed(lambda: _main(args))


def _main(args: list[str]) -> int:
    if args[:1] == ["--version"]:
        say(f"nenya {nenya.__version__}")
        return 0
    if not args or args[0] in ("--help", "-h"):
        say(Lines(overview()))
        return 0 if args else 2
    if args[0] in ("help", "completion"):
        set_up_logging()
        try:
            say(Lines(topic_text(args[1:]) if args[0] == "help" else script(" ".join(args[1:]))))
        except NenyaError as error:
            return _say(args[0], error, str(error), error.exit_code, show=False)
        return 0
    known = command_names()
    if args[0] not in known:
        hint = suggest(args[0], [*known, "help", "completion"])
        print(
            printed(f"nenya: unknown command {args[0]}{hint} (possible: {', '.join(known)}, help, completion)"),
            file=sys.stderr,
        )
        return 2
    return _run(args[0], args[1:])


def run_command(name: str, args: Sequence[str] | None = None) -> int:
    """Run one command with its overrides; see `main` for the exit codes."""
    given = list(sys.argv[1:] if args is None else args)
    return _until_closed(lambda: _run(name, given))


def _until_closed(work: Callable[[], int]) -> int:
    """Do the work; end quietly once the reader of the output, such as `head`, has closed the pipe."""
    try:
        code = work()
    except BrokenPipeError:
        code = _PIPE
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:  # otherwise Python reports it again when it exits
            code = _PIPE
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return code


def _run(name: str, args: list[str]) -> int:
    if name == "portal" and "--export" in args[:-1]:  # as in `nenya portal --export DIR`
        place = args.index("--export")
        args[place : place + 2] = [f"export={args[place + 1]}"]
    if name == "prepare" and "--list" in args:
        say(Lines(module_of(name).recipe_list()))
        return 0
    flags = {a.split("=")[0] for a in args} & {*HYDRA_FLAGS}
    set_up_logging()
    many = any(arg in ("--multirun", "-m") for arg in args)
    show = any(arg.lower() == "traceback=true" for arg in args)
    try:
        if flags - {"--help", "-h"}:
            return hydra_answers(name, args)
        if many and not flags:
            return int(importlib.import_module("nenya.commands.sweep").run(name, args))
        options = compose(name, [arg for arg in args if arg not in flags])
        if flags:
            say(Lines(help_text(name, options)))
            return 0
        storage = options.storage
        with s3_access(storage.anonymous, storage.requester_pays, storage.one_writer):
            code = int(module_of(name).run(with_network(options, args)))
        for line in given_twice(args):
            log.warning("%s", line)
        return code
    except BrokenPipeError:
        raise
    except NenyaError as error:
        return _say(name, error, str(error), error.exit_code, show)
    except KeyboardInterrupt as error:
        return _say(name, error, "interrupted", Interrupted.exit_code, show)
    except Exception as error:
        first = first_words(error)
        hint = "" if show else " (traceback=true shows where)"
        return _say(name, error, f"{type(error).__name__}: {first}{hint}", 2, show)


def _say(name: str, error: BaseException, line: str, code: int, show: bool) -> int:
    if show:
        print(printed("".join(traceback.format_exception(error)), lines=True), end="", file=sys.stderr)
    print(cut(printed(f"nenya {name}: {' '.join(line.split())}")), file=sys.stderr, flush=True)
    return code
