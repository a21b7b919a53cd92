"""How signals end the process: the first asks it to stop, and a second SIGTERM or SIGINT ends it at once."""

import contextlib
import os
import signal
import socket
import threading

ENDING = (signal.SIGTERM, signal.SIGINT)
# Schedulers announce the end of a job with one of these, some of them repeatedly, and a closed terminal sends SIGHUP.
ANNOUNCING = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class StopRequest:
    """Remembers the first signal, and decides whether it raises KeyboardInterrupt or only asks the process to stop.

    Python calls signal handlers on the main thread, between two calls of compiled code, so these calls always finish. Of two
    equal signals during one such call it only notices one. Therefore a second thread counts the signals, and answers while the
    main thread computes.
    """

    def __init__(self):
        self.received = None  # the name of the first signal; code that must finish something first looks at it
        self.raised = False  # whether KeyboardInterrupt was raised for it
        self._raises, self._promise = False, ""
        self._noted = threading.Lock()  # the first thread that notes a signal takes it and keeps it
        self._numbers = None

    def listen(self):
        """Handles signals with this object from now on. Outside `raising`, a signal is only remembered.

        The ANNOUNCING ones are left to whoever handles or ignores them already, such as `nohup`.
        """
        if self._numbers is None:
            self._numbers, written = socket.socketpair()
            written.setblocking(False)
            signal.set_wakeup_fd(written.detach(), warn_on_full_buffer=False)
            threading.Thread(target=self._count, name="signals", daemon=True).start()
        for number in (*ENDING, *ANNOUNCING):
            if number in ENDING or signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, self._handle)

    def raising(self):
        """Context manager in which a signal raises KeyboardInterrupt at once: the work there is not worth finishing."""
        return self._answering(raises=True)

    def finishing(self, promise=""):
        """Context manager in which a signal is only remembered. `promise` tells the user what will happen next."""
        return self._answering(raises=False, promise=promise)

    @contextlib.contextmanager
    def _answering(self, raises, promise=""):
        before = self._raises, self._promise
        self._raises, self._promise = raises, promise
        try:
            if raises:
                self.raise_if_received()
            yield
        finally:
            self._raises, self._promise = before

    def raise_if_received(self):
        """Raises KeyboardInterrupt if a signal came earlier."""
        if self.received:
            self.raised = True
            raise KeyboardInterrupt(self.received)

    def _handle(self, number, _):
        self._note(number)
        if self._raises and not self.raised:
            self.raise_if_received()

    def _count(self):
        """Runs on a thread of its own, and ends the process at the second of the ENDING signals."""
        received = 0
        while True:
            number = self._numbers.recv(1)[0]
            if signal.getsignal(number) == self._handle:  # a debugger may have taken a signal over
                received += number in ENDING
                if received > 1:
                    os._exit(130)
                self._note(number)

    def _note(self, number):
        self.received = self.received or signal.Signals(number).name
        if self._noted.acquire(blocking=False) and self._promise:
            hint = "; once more to end at once" if number in ENDING else ""
            _write_line(f"{self.received}: {self._promise}{hint}")


stop_request = StopRequest()  # one for the whole process; `main.py` calls `listen`


def end_process(line, exit_code):
    """Ends the process at once from any thread, with a line on stderr. The main thread may be waiting in C++ forever."""
    _write_line(f"error: {line}")
    os._exit(exit_code)


def _write_line(line):
    # Not with print, because the main thread may be in the middle of one.
    with contextlib.suppress(OSError):  # the disk may be full, or the same Ctrl-C may have ended the reader of a pipe
        os.write(2, f"{os.linesep if os.isatty(2) else ''}{line}\n".encode())
