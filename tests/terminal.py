"""A command as a person runs it at a terminal."""

import signal
import subprocess


def start(words: list[str]) -> subprocess.Popen[str]:
    """In a process group of its own, where Ctrl-C works.

    What a shell starts in the background ignores it, and hands that on to its children: to these tests, too.
    """
    return subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
