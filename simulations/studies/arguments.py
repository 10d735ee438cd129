"""Kinds of values that studies' commands take."""

import argparse


def positive(text: str) -> int:
    """A number from 1 on."""
    return _from(1, text)


def several(text: str) -> int:
    """A number from 2 on."""
    return _from(2, text)


def _from(least: int, text: str) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} on")
    return int(text)
