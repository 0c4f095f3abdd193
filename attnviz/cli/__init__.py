"""The command line: a table of commands, of which only the chosen one is imported.

Each command is a module of this package with two functions: `arguments(parser)`, which adds its
options, and `run(args)`, which runs it and returns the exit code. A command whose module is not
installed does not appear.

Exit codes: 0 all well, 1 something is wrong with what was looked at (a broken run, a finding that
is an error), 2 bad usage or input, or output that could not be written, 130 interrupted. Errors are
one line; `--debug` shows where they came from. A closed output counts as one that is thrown away; a
reader that has seen enough, such as `head`, ends the command with 0.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NoReturn

from attnviz.errors import AttnvizError, InputError, unknown_name

INTERRUPTED = 130
"""The exit code after Ctrl-C: 128 and the number of the signal, as shells have it."""

COMMANDS = {
    "demo": "browse finished runs that come with the package, without training anything",
    "watch": "print what a model's attention looks like on some images",
    "evaluate": "run a model over images with masks, and score every map that it gives",
    "attribute": "draw and score the maps of a Captum method",
    "measure": "score maps against masks",
    "compare": "rank runs, with intervals and tests over seeds and images",
    "doctor": "diagnose a model's attention: faults, evidence, remedies",
    "report": "write one self-contained HTML page about some runs",
    "dashboard": "browse runs in a browser",
    "ls": "list runs with their states",
    "show": "print a run's header and summary",
    "diff": "print the settings in which runs differ",
    "export": "write the tables of runs as CSV, JSON or Parquet, or whole runs for a tracker",
    "verify": "check every file of every run",
    "migrate": "write the headers of runs of an earlier form, or edited by hand, anew",
}


def available() -> dict[str, str]:
    """The commands that are there, with one line of help each."""
    return {name: line for name, line in COMMANDS.items() if find_spec(f"{__name__}.{name}")}


def run(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: The arguments after `attnviz`; by default those of this process.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    _any_text(sys.stdout, sys.stderr)
    try:
        try:
            code = _run([word for word in words if word != "--debug"])
        except SystemExit as end:  # argparse has printed its help
            code = end.code if isinstance(end.code, int) else 2
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        _say("attnviz", "interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of the output, such as `head`, closed it
        _discard_output()
        return 0
    except Exception as error:
        if debug:
            raise
        return complain(error)
    return code


def complain(error: Exception, program: str = "attnviz") -> int:
    """Print an error to stderr in one line; return the exit code."""
    if _is_of_output(error):
        _discard_output()
        return _say(program, f"write standard output: {str(error.args[1]).lower()}")
    known = isinstance(error, AttnvizError)
    kind = "" if known else f"unexpected {type(error).__name__}: "
    return _say(program, f"{kind}{error}{'' if known else '; --debug shows where it came from'}")


def _run(words: list[str]) -> int:
    commands = available()
    if not words or words[0] in ("-h", "--help"):
        print(_help(commands))
        return 0 if words else 2
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"attnviz {version('attnviz')}")
        return 0
    name = words[0]
    if name not in commands:
        raise unknown_name("command", name, commands)
    module = import_module(f"{__name__}.{name}")
    parser = Parser(
        prog=f"attnviz {name}", description=_sentence(commands[name]), allow_abbrev=False
    )
    parser.add_argument("--debug", action="store_true", help="on an error, show where it came from")
    module.arguments(parser)
    code: int = module.run(parser.parse_args(words[1:]))
    return code


class Parser(argparse.ArgumentParser):
    """An argument parser that reports usage errors as `InputError`, in one line."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """The arguments; an unknown option is an error that names the nearest one."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            wrong = next((word.partition("=")[0] for word in unknown if word[:1] == "-"), "")
            near = get_close_matches(wrong, flags, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return found

    def error(self, message: str) -> NoReturn:
        """Raise an `InputError` that names the command's `--help`."""
        raise InputError(f"{message}; {self.prog} --help lists its arguments")


def _help(commands: dict[str, str]) -> str:
    width = max(map(len, commands))
    lines = [f"  {name:<{width}}  {line}" for name, line in commands.items()]
    return "\n".join(
        [
            "usage: attnviz COMMAND …",
            "",
            "Watch a model's attention, map it, and measure it against a place that is known.",
            "",
            *lines,
            "",
            "attnviz COMMAND --help lists a command's arguments. Exit codes: 0 all well,",
            "1 something is wrong with what was looked at, 2 bad usage or input, 130 interrupted.",
        ]
    )


def _sentence(line: str) -> str:
    return f"{line[0].upper()}{line[1:]}."


def _say(program: str, message: str) -> int:
    from attnviz.text import printable

    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):  # it is full, or closed
            print(f"{program}: {printable(message)}", file=sys.stderr, flush=True)
    return 2


def _any_text(*streams: object) -> None:
    """Print every character: escape those that the encoding lacks."""
    for stream in streams:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _is_of_output(error: Exception) -> bool:
    """Whether writing to standard output failed, as on a full disk: no file is named."""
    return (
        isinstance(error, OSError)
        and not isinstance(error, AttnvizError)
        and error.filename is None
        and error.errno in (errno.ENOSPC, errno.EIO, errno.EBADF, errno.EDQUOT, errno.EFBIG)
    )


def _discard_output() -> None:
    """Point stdout at the null device, so that Python reports no second error at exit."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
