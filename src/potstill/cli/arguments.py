"""Types of command-line values, with messages for a person."""

from __future__ import annotations

import argparse
from collections.abc import Callable


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


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """Return a reader of whole numbers within bounds, those of the same key in a config."""

    def read(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"found {value}, allowed is {least} to {most}")
        return value

    read.__name__ = "whole number"  # argparse's word for what cannot be read as one
    return read
