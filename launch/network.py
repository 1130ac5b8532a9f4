"""What libraries are told before they are loaded: threads, and the network interface to other hosts."""

import fcntl
import os
import socket
import struct
from collections.abc import MutableMapping

from .environment import Place, threads_per_rank

_SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface


def set_defaults(place: Place, environment: MutableMapping[str, str] | None = None) -> dict[str, str]:
    """Sets OMP_NUM_THREADS, GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME where nobody has; gives what now holds.

    The interface is the one that leads to rank 0's host, because gloo otherwise looks up the host's own name, which
    many systems answer with a loopback address. Where one host is all, the loopback serves, whatever the network.
    """
    given = os.environ if environment is None else environment
    if place.world == 1:
        return {}
    given.setdefault("OMP_NUM_THREADS", str(threads_per_rank(place.local_world)))
    if place.local_world == place.world:
        if "lo" in interfaces():
            given.setdefault("GLOO_SOCKET_IFNAME", "lo")
    elif interface := interface_towards(place.store_address):
        given.setdefault("GLOO_SOCKET_IFNAME", interface)
        given.setdefault("NCCL_SOCKET_IFNAME", interface)
    names = ("OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    return {name: given[name] for name in names if name in given}


def interface_towards(host: str) -> str | None:
    """The name of this host's interface on the way to `host`; None where the system does not say. Sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))
        except OSError:
            return None
        own = probe.getsockname()[0]
    return next((name for name, address in interfaces().items() if address == own), None)


def interfaces() -> dict[str, str]:
    """Interface → IPv4 address, of those that have one; {} where the system does not say."""
    found: dict[str, str] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name[:15].encode()))
            except OSError:  # it has none, or this is not Linux
                continue
            found[name] = socket.inet_ntoa(answer[20:24])
    return found
