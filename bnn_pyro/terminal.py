"""A click program for people: each error and warning is one sentence on stderr, and an exit code says which kind."""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from bnn_pyro.errors import BNNError, unknown

USAGE, UNEXPECTED, INTERRUPTED = 2, 70, 130


class Commands(click.Group):
    """A click group whose errors are one sentence on stderr and an exit code; ``--debug`` shows the traceback."""

    def main(self, args: Any = None, prog_name: str | None = None, *_: Any, **more: Any) -> Any:
        words = list(sys.argv[1:] if args is None else args)
        debug = "--debug" in words
        words = [word for word in words if word != "--debug"]
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")  # a terminal without ± shows ? instead of failing
        sys.exit(self._run(words, debug, {**more, "standalone_mode": False}))

    def _run(self, words: list[str], debug: bool, more: dict[str, Any]) -> int:
        try:
            with _plain_warnings():
                return super().main(words or ["--help"], prog_name="bnn-pyro", **more) or 0
        except (click.Abort, KeyboardInterrupt):
            return _complain("stopped.", debug, INTERRUPTED)
        except click.NoSuchOption as error:
            hint = f"A setting of the model or the method is written --set {error.option_name.lstrip('-')}=VALUE."
            return _complain(f"{error.format_message().rstrip('.')}. {hint}", debug, USAGE)
        except click.ClickException as error:
            return _complain(error.format_message(), debug, USAGE)
        except BNNError as error:
            return _complain(str(error), debug, error.exit_code)
        except SystemExit:  # click met a closed pipe: the reader, such as `head`, has what it wanted
            return 0
        except Exception as error:
            text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            hint = "" if debug else " This should not happen: run it again with --debug, and report what it shows."
            return _complain(f"unexpected {text}{'' if text.endswith('.') else '.'}{hint}", debug, UNEXPECTED)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            raise unknown("command", args[0], self.commands, "bnn-pyro --help shows all.")
        return super().resolve_command(ctx, args)


def visible(text: str) -> str:
    """Text for a terminal: control characters other than newlines, which names may carry, are shown as escapes."""
    return "".join(c if c == "\n" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _complain(text: str, debug: bool, code: int) -> int:
    if debug:
        traceback.print_exc()
    click.echo(f"bnn-pyro: {visible(' '.join(text.split()))}", err=True)
    return code


def warn_in_a_line(text: str) -> None:
    """A warning on stderr, on one line."""
    click.echo(f"warning: {visible(' '.join(text.split()))}", err=True)


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings become sentences on stderr, each once."""
    seen: set[str] = set()

    def show_once(message: Warning | str, *_: Any, **__: Any) -> None:
        if str(message) not in seen:
            seen.add(str(message))
            warn_in_a_line(str(message))

    with warnings.catch_warnings():
        warnings.showwarning = show_once
        yield
