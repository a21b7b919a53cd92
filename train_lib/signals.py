"""How a process ends early. The first SIGTERM or SIGINT asks the loop to save and stop, the second ends the process at once."""

import os
import signal
import sys


class StopRequest:
    """Context manager that turns the first signal into a flag. `received` names it, None before.

    A Python handler runs only between two calls of the compiled loop, so a call under way is always finished.
    """

    def __init__(self):
        self.received = None

    def __enter__(self):
        self._previous = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number, _):
        if self.received is not None:
            os._exit(130)
        self.received = signal.Signals(number).name
        print(f"\n{self.received}: saving and stopping after this call; once more to end at once", file=sys.stderr, flush=True)


def end_process(line, exit_code):
    """Ends the process at once, from any thread, with one line on stderr: for a main thread that waits in C++ for good."""
    # Not by print: the main thread may hold the stream.
    os.write(2, f"{os.linesep if os.isatty(2) else ''}error: {line}\n".encode())
    os._exit(exit_code)
