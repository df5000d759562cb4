"""Signatures that are enforced at run time."""

import functools


def enforced(f):
    """beartype's f, which is made when it is first called.

    To make them for all layers would take longer than to import everything else here.
    """

    @functools.cache
    def checked():
        from beartype import beartype

        return beartype(f)

    @functools.wraps(f)
    def call(*args, **kwargs):
        return checked()(*args, **kwargs)

    return call
