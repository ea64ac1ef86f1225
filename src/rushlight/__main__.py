"""The program: `python -m rushlight`, and the `rushlight` script."""

import os

INTERRUPTED = 130
"""As in rushlight.cli.exit_codes, which is not imported yet when the first interrupt may arrive."""

try:
    import signal
except KeyboardInterrupt:
    os._exit(INTERRUPTED)


def program() -> None:
    """Run `rushlight.cli.main`; Ctrl-C prints no traceback, not even during imports and at exit."""
    try:
        by_default = (
            signal.getsignal(signal.SIGINT) is signal.default_int_handler
        )  # a shell may have set it to be ignored
        if by_default:
            signal.signal(signal.SIGINT, _quit)
        from rushlight.cli import main

        try:
            if by_default:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            main()
        finally:
            if by_default:
                signal.signal(signal.SIGINT, _quit)
    except KeyboardInterrupt:
        os._exit(INTERRUPTED)


def _quit(_number: int, _frame: object) -> None:
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    program()
