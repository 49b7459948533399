"""Stands in for one of Flower's programs, and has the zygote run it.

Run by path and without site packages, so that it starts at once: ``python -IS shim.py FOLDER
PROGRAM ARGUMENTS``, with the folder of the zygote's socket and the path of the real program. If no
zygote answers, it becomes that program. It lives as long as the zygote's child does, hands signals
on to it, and ends with its exit status.

What goes over the socket: the length of the request (u32) with the three standard files, and the
request (JSON: arguments, environment, working folder); back, a byte from the child; a byte to it:
go; then signal numbers to it, and its exit status back.
"""

import json
import os
import signal
import socket
import struct
import sys
from types import FrameType

NAME = "zygote.sock"
LENGTH = struct.Struct("<I")
ANSWER_S = 5.0
"""Seconds that the zygote is given to answer."""
READY, GO = b"+", b"!"
HANDED_ON = signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP


def in_folder(folder: str) -> tuple[int, str]:
    """Return a folder's descriptor, and a short path of the socket in it.

    Paths of sockets have at most 107 characters.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    return handle, f"/proc/self/fd/{handle}/{NAME}"


def start(folder: str, arguments: list[str]) -> socket.socket:
    """Have the zygote start a child with these arguments, this environment, folder and files.

    Raises
    ------
    OSError
        No zygote answers.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(ANSWER_S)
    handle, path = in_folder(folder)
    try:
        connection.connect(path)
    finally:
        os.close(handle)
    told = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}
    request = json.dumps(told).encode()
    socket.send_fds(connection, [LENGTH.pack(len(request))], [0, 1, 2])
    connection.sendall(request)
    if connection.recv(1) != READY:
        raise ConnectionError("the zygote has not started a child")

    def hand_on(number: int, frame: FrameType | None) -> None:
        connection.send(bytes([number]))

    for number in HANDED_ON:
        signal.signal(number, hand_on)
    connection.sendall(GO)
    connection.settimeout(None)
    return connection


def main() -> None:
    """Run a program by the zygote, or by itself."""
    folder, program, *arguments = sys.argv[1:]
    try:
        connection = start(folder, [program, *arguments])
    except OSError as error:
        print(
            f"flwr-dmml: no zygote answers ({error}): {program} starts by itself", file=sys.stderr
        )
        sys.stderr.flush()
        os.execv(program, [program, *arguments])
    try:
        status = connection.recv(1)
    except ConnectionError:
        status = b""
    sys.exit(status[0] if status else 1)


if __name__ == "__main__":
    main()
