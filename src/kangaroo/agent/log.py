"""Log lines on the console, `kangaroo-agent: message key=value`. A serial port is slow: one line
per event.
"""

from __future__ import annotations

import os

_debug = False


def enable_debug() -> None:
    global _debug  # noqa: PLW0603 - set once, from the kernel command line
    _debug = True


def debug(message: str, **facts: object) -> None:
    if _debug:
        _write(message, facts)


def info(message: str, **facts: object) -> None:
    _write(message, facts)


def exception(message: str, error: BaseException) -> None:
    import traceback  # noqa: PLC0415 - not on the way to a start

    _write(message, {"error": repr(error)})
    _emit("".join(traceback.format_exception(error)))


def _write(message: str, facts: dict[str, object]) -> None:
    pairs = "".join(f" {key}={_value(value)}" for key, value in facts.items())
    _emit(f"kangaroo-agent: {message}{pairs}\n")


def _value(value: object) -> str:
    text = str(value)
    return repr(text) if not text or " " in text or "\n" in text else text


def _emit(text: str) -> None:
    try:
        os.write(2, text.encode(errors="replace"))
    except OSError:
        pass  # nowhere left to say it
