"""Ports for servers that have to be named before they listen."""

import os
import socket


def free_ports(count: int) -> int:
    """The first of so many consecutive ports (16 at most) that nobody listens at, in this process alone."""
    for port in range(21_000 + os.getpid() * 16 % 8_000, 60_000, 16):
        sockets = [socket.socket() for _ in range(count)]
        try:
            for offset, one in enumerate(sockets):
                one.bind(("127.0.0.1", port + offset))
            return port
        except OSError:
            continue
        finally:
            for one in sockets:
                one.close()
    raise AssertionError("no free ports")
