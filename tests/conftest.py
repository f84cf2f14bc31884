"""What holds for all tests."""

from __future__ import annotations

import signal

# A command that a shell starts with `&` ignores Ctrl-C, and so does all that it starts: tests that interrupt would hang.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
