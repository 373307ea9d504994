"""The `nenya` command and the scripts: Hydra in, one call out, one line and an exit code for each error."""

import importlib
import logging
import os
import sys
import traceback
from collections.abc import Sequence

import nenya
from nenya.commands.compose import about, command_names, compose, hydra_answers, module_of, set_up_logging
from nenya.commands.help import help_text
from nenya.commands.output import say
from nenya.errors import Interrupted, NenyaError
from nenya.options.declare import suggest
from nenya.storage.texts import Lines, cut, printed

log = logging.getLogger(__name__)

_PIPE = 141  # the exit code that shells give a command ended by SIGPIPE
HYDRA_FLAGS = ("--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i", "--package", "-p")


def main(argv: Sequence[str] | None = None) -> int:
    """Run `nenya COMMAND key=value ...`.

    Returns:
        The exit code: 0 done, 1 some of several files failed, 2 bad input, option or environment, 75 interrupted.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if args[:1] == ["--version"]:
        print(f"nenya {nenya.__version__}")
        return 0
    if not args or args[0] in ("--help", "-h"):
        print("usage: nenya COMMAND key=value ...   (nenya COMMAND --help lists the keys)\n")
        print("\n".join(f"  {name:10s} {about(name)}" for name in command_names()))
        return 0 if args else 2
    known = command_names()
    if args[0] not in known:
        hint = suggest(args[0], known)
        print(printed(f"nenya: unknown command {args[0]}{hint} (possible: {', '.join(known)})"), file=sys.stderr)
        return 2
    return run_command(args[0], args[1:])


def run_command(name: str, args: Sequence[str] | None = None) -> int:
    """Run one command with its overrides; see `main` for the exit codes."""
    args = list(sys.argv[1:] if args is None else args)
    if name == "portal" and "--export" in args[:-1]:  # as in `nenya portal --export DIR`
        place = args.index("--export")
        args[place : place + 2] = [f"export={args[place + 1]}"]
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
            sys.stdout.flush()
            return 0
        code = int(module_of(name).run(options))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE
    except NenyaError as error:
        return _say(name, error, str(error), error.exit_code, show)
    except KeyboardInterrupt as error:
        return _say(name, error, "interrupted", Interrupted.exit_code, show)
    except Exception as error:
        first = (str(error).strip() or "no message").splitlines()[0]
        hint = "" if show else " (traceback=true shows where)"
        return _say(name, error, f"{type(error).__name__}: {first}{hint}", 2, show)


def _say(name: str, error: BaseException, line: str, code: int, show: bool) -> int:
    if show:
        print(printed("".join(traceback.format_exception(error)), lines=True), end="", file=sys.stderr)
    print(cut(printed(f"nenya {name}: {' '.join(line.split())}")), file=sys.stderr, flush=True)
    return code
