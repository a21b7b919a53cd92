"""How a process ends early: the first SIGTERM or SIGINT asks it to stop, the second ends it at once."""

import contextlib
import os
import signal
import socket
import threading

NUMBERS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """What became of the first signal.

    Python runs its handlers on the main thread, between two calls of compiled code, which thus always finish; and of two equal
    signals within one such call it hears as of one. So a second thread counts them, and answers while the main thread computes.

    Attributes:
      received: the signal's name, None before; whoever finishes something first looks at it.
      raised: whether it was raised as KeyboardInterrupt, inside `raising`.
    """

    def __init__(self):
        self.received = None
        self.raised = False
        self._raising = False
        self._promise = ""
        self._told = threading.Lock()  # taken by the first thread that takes note, and kept
        self._numbers = None

    def listen(self):
        """Lets this object handle the signals from now on. Until told otherwise it takes note of one, and no more."""
        if self._numbers is None:
            self._numbers, written = socket.socketpair()
            written.setblocking(False)
            signal.set_wakeup_fd(written.detach(), warn_on_full_buffer=False)
            threading.Thread(target=self._count, name="signals", daemon=True).start()
        for number in NUMBERS:
            signal.signal(number, self._handle)

    @contextlib.contextmanager
    def raising(self):
        """Inside, a signal raises KeyboardInterrupt at once: what is under way is not worth finishing."""
        with self._set(True, ""):
            self.raise_if_received()
            yield

    @contextlib.contextmanager
    def finishing(self, promise=""):
        """Inside, a signal is only taken note of, and the user is told the promise that it will be obeyed, if there is one."""
        with self._set(False, promise):
            yield

    @contextlib.contextmanager
    def _set(self, *values):
        before = self._raising, self._promise
        self._raising, self._promise = values
        try:
            yield
        finally:
            self._raising, self._promise = before

    def raise_if_received(self):
        """Raises KeyboardInterrupt where a signal came while none was raised."""
        if self.received:
            self.raised = True
            raise KeyboardInterrupt(self.received)

    def _handle(self, number, _):
        self._take_note(number)
        if self._raising and not self.raised:
            self.raise_if_received()

    def _count(self):
        """Ends the process at the second signal, on a thread of its own."""
        received = 0
        while True:
            number = self._numbers.recv(1)[0]
            if number in NUMBERS and signal.getsignal(number) == self._handle:  # a debugger may have taken one over
                received += 1
                if received > 1:
                    os._exit(130)
                self._take_note(number)

    def _take_note(self, number):
        self.received = self.received or signal.Signals(number).name
        if self._told.acquire(blocking=False) and self._promise:
            _write_line(f"{self.received}: {self._promise}; once more to end at once")


stop_request = StopRequest()  # signals are the process's; `main.py` listens


def end_process(line, exit_code):
    """Ends the process at once, from any thread, with one line on stderr: for a main thread that waits in C++ for good."""
    _write_line(f"error: {line}")
    os._exit(exit_code)


def _write_line(line):
    # Not by print: the main thread may be in the middle of one.
    with contextlib.suppress(OSError):  # of a pipe whose reader the same Ctrl-C has ended, or a full disk
        os.write(2, f"{os.linesep if os.isatty(2) else ''}{line}\n".encode())
