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
