"""Types of command-line values, with messages for a person."""

from __future__ import annotations

import argparse


def positive_int(text: str) -> int:
    """Return a whole number of 1 or more.

    Raises:
        argparse.ArgumentTypeError: If it is not one.
    """
    if text.isascii() and text.isdigit() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"a whole number of 1 or more was expected, found {text!r}")


def port_number(text: str) -> int:
    """Return a port, 0 for a free one.

    Raises:
        argparse.ArgumentTypeError: If it is not one.
    """
    if text.isascii() and text.isdigit() and int(text) < 65536:
        return int(text)
    raise argparse.ArgumentTypeError(f"a port from 0 to 65535 was expected, found {text!r}")
