"""Ports for servers that have to be named before they listen."""

import errno
import socket

_BLOCK = 16
# Below the ports that systems hand out by themselves (from 32,768 on Linux, 49,152 elsewhere).
_FIRST_PORTS = range(21_000, 32_000, _BLOCK)
_claims: list[socket.socket] = []


def free_ports(count: int) -> int:
    """The first of so many consecutive ports (15 at most) that nobody listens at.

    The last port of their block of 16 stays bound until this process ends. It is the claim: no other process,
    and no later call, gets the same block.
    """
    assert 1 <= count < _BLOCK, count
    for first in _FIRST_PORTS:
        claim = _bound(first + _BLOCK - 1)
        if claim is None:
            continue
        held = [_bound(first + offset) for offset in range(count)]
        for one in held:
            if one is not None:
                one.close()
        if None not in held:
            _claims.append(claim)
            return first
        claim.close()
    raise AssertionError("no free ports")


def _bound(port: int) -> socket.socket | None:
    """A socket at the port; None where somebody has it."""
    found = socket.socket()
    try:
        found.bind(("127.0.0.1", port))
    except OSError as error:
        found.close()
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            return None
        raise
    return found
