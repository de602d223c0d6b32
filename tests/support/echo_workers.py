"""A supervised service without models: each worker answers a connection with its slot and process id.

    python -m tests.support.echo_workers WORKERS

prints the port. A client sends a letter: `h` to be answered, `s` to be answered after half a second, `d` to kill the
worker, `n` to make it end as one that cannot start, `m` for the metrics that it sees. When its channel is closed a
worker answers who is connected and ends with 0, unless the environment says HANG.
"""

import os
import select
import signal
import socket
import sys
import threading
import time

from prometheus_client import generate_latest

from service import supervisor
from service.board import Seat, State
from service.metrics import Metrics
from service.supervisor import CANNOT_START, Supervisor
from service.visits import Visit


def work(seat: Seat, channel: socket.socket) -> int:
    if "REFUSE" in os.environ:
        return CANNOT_START
    metrics = Metrics(seat.board, seat.slot)
    metrics.workers.set(1)
    answering: list[threading.Thread] = []
    seat.report(State.READY)
    while True:
        select.select([channel], [], [])
        letter, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
        if not letter:
            break
        connection = socket.socket(fileno=descriptors[0])
        connection.settimeout(None)
        answering.append(threading.Thread(target=answer, args=(connection, seat, metrics), daemon=True))
        answering[-1].start()
    seat.report(State.LEAVING)
    if "HANG" in os.environ:
        time.sleep(60)
    for thread in answering:
        thread.join()
    return 0


def answer(connection: socket.socket, seat: Seat, metrics: Metrics) -> None:
    with connection:
        match connection.recv(1):
            case b"d":
                os.kill(os.getpid(), signal.SIGKILL)
            case b"n":
                os._exit(CANNOT_START)
            case b"m":
                connection.sendall(generate_latest(metrics.registry))
                return
            case b"s":
                time.sleep(0.5)
            case b"":
                return
        metrics.answered(Visit(0.0, route="/"), 200, 0.001)
        connection.sendall(f"{seat.slot} {os.getpid()} {int(seat.board.opened)}".encode())


def main() -> None:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()  # whoever reads the port may connect
    print(listener.getsockname()[1], flush=True)  # noqa: T201
    supervisor.PAUSE_FOR_MENDING_S = 0.05
    sys.exit(Supervisor(int(sys.argv[1]), [listener], work, shutdown_timeout_s=5).run())


if __name__ == "__main__":
    main()
