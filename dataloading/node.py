"""Memory without a name: between processes of one node, and gone with the last of them, however they end."""

import array
import hashlib
import mmap
import os
import socket
import struct
import tempfile
import threading
import time

import numpy as np

from ..errors import DataError

_PATIENCE = 60.0  # seconds that a process waits for the one that makes the memory


def shared_memory(size: int) -> tuple[int, np.ndarray]:
    """A file handle of `size` zero bytes, and these bytes. raises: DataError where the machine has no room.

    They lie in no folder, so a small /dev/shm does not matter; where the system has no such memory, in a file of the
    temporary folder that has lost its name.
    """
    if hasattr(os, "memfd_create"):
        handle = os.memfd_create("forgepress-loader")
    else:
        with tempfile.TemporaryFile() as file:
            handle = os.dup(file.fileno())
    try:
        os.ftruncate(handle, size)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(
                handle, 0, size
            )  # else a full machine would kill the process at the first write
        return handle, np.frombuffer(mmap.mmap(handle, size), np.uint8)
    except OSError as error:
        os.close(handle)
        raise DataError(
            f"{size / 2**20:,.0f} MiB of shared memory for the loader cannot be had ({error.strerror}); give it a "
            "smaller budget, prefetch or cache, or use mode=thread"
        ) from None


def node_memory(key: str, size: int) -> np.ndarray:
    """`size` bytes (zero at first) that all processes of this node and user share which ask for `key`.

    The first one makes them and hands them to the others through a socket in Linux' abstract namespace, which leaves
    no file; who asks after it has died gets new ones. Elsewhere every process has its own.
    raises: DataError where there is no room, or where the one that makes them does not answer.
    """
    if not hasattr(os, "memfd_create") or not hasattr(socket, "AF_UNIX"):
        return shared_memory(size)[1]
    name = b"\0forgepress-" + hashlib.sha256(f"{key} {size} {os.getuid()}".encode()).hexdigest()[:32].encode()
    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until:
        if (found := _taken(name, size)) is not None:
            return found
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            server.bind(name)
        except OSError:  # another one was quicker
            server.close()
            time.sleep(0.05)
            continue
        try:
            handle, memory = shared_memory(size)
        except DataError:
            server.close()
            raise
        server.listen(64)
        threading.Thread(target=_serve, args=(server, handle), name="forgepress-cache", daemon=True).start()
        return memory
    raise DataError(
        f"no process of this node has handed over the shared cache within {_PATIENCE:.0f} s; is one of them stopped? "
        "Leave out shared to do without"
    )


def _taken(name: bytes, size: int) -> np.ndarray | None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(_PATIENCE)
        try:
            client.connect(name)
            if _other_user(client):
                return None
            room = socket.CMSG_LEN(array.array("i").itemsize)
            _, extra, _, _ = client.recvmsg(1, room)
        except OSError:
            return None
    for _, _, content in extra:
        handle = array.array("i", content[:4])[0]
        memory = np.frombuffer(mmap.mmap(handle, size), np.uint8)
        os.close(handle)
        return memory
    return None


def _serve(server: socket.socket, handle: int) -> None:
    while True:
        client, _ = server.accept()
        with client:
            if not _other_user(client):
                socket.send_fds(client, [b"m"], [handle])


def _other_user(peer: socket.socket) -> bool:
    """Abstract names are open to everybody: memory is taken from and given to one's own processes alone."""
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return struct.unpack("3i", credentials)[1] != os.getuid()
