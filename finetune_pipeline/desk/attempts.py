"""Rate limit for failed sign-ins: exponential delays per user name and network. In memory, of bounded size.

    attempts.wait("anna", "192.0.2.7")        seconds until this address may try this name again
    attempts.failed("anna", "192.0.2.7")

Two counts: failures of one name from one network (FREE_TRIES are free), and failures of one network for any name
(FREE_FOR_NETWORK are free, since an office may share an address). Each further failure doubles the delay, up to
LONGEST_WAIT. A name alone is never delayed: its owner can sign in from another address while someone guesses. A correct
password resets the count of that name there, but not that of the network: an attacker may have an account, too.

A network is an IPv4 address, or the /64 of an IPv6 address, which one customer gets as a whole.
"""

from __future__ import annotations

import ipaddress
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

FREE_TRIES = 3
FREE_FOR_NETWORK = 20
LONGEST_WAIT = 60.0
EXPIRY = 900.0  # seconds after the last failure
MAX_ENTRIES = 10_000

Key = tuple[str, str]


class Attempts:
    """Recent failures. They are lost at a restart; scrypt still limits the rate then."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failed: OrderedDict[Key, tuple[int, float]] = OrderedDict()
        self._lock = threading.Lock()  # sign-ins run in several threads

    def wait(self, name: str, address: str) -> float:
        """Seconds until another try is accepted; 0 if now."""
        with self._lock:
            now = self._clock()
            return max(0.0, *(self._until(key, free) - now for key, free in _keys(name, address)))

    def failed(self, name: str, address: str) -> None:
        """Count a failure."""
        with self._lock:
            now = self._clock()
            for key, _ in _keys(name, address):
                self._failed[key] = (self._count(key, now) + 1, now)
                self._failed.move_to_end(key)
            while len(self._failed) > MAX_ENTRIES:
                self._failed.popitem(last=False)

    def succeeded(self, name: str, address: str) -> None:
        """Undo the count of this try, which was counted before its password was checked."""
        with self._lock:
            pair, network = (key for key, _ in _keys(name, address))
            self._failed.pop(pair, None)
            count, last = self._failed.get(network, (0, 0.0))
            if count:
                self._failed[network] = (count - 1, last)

    def _count(self, key: Key, now: float) -> int:
        count, last = self._failed.get(key, (0, float("-inf")))
        return count if now - last < EXPIRY else 0

    def _until(self, key: Key, free: int) -> float:
        count, last = self._failed.get(key, (0, float("-inf")))
        extra = count - free
        return last + min(LONGEST_WAIT, 2.0 ** min(extra, 10)) if extra >= 0 else float("-inf")


def _keys(name: str, address: str) -> tuple[tuple[Key, int], tuple[Key, int]]:
    network = network_of(address)
    return ((name[:64], network), FREE_TRIES), (("", network), FREE_FOR_NETWORK)


def network_of(address: str) -> str:
    """The network of an address: "2001:db8:1:2::7" -> "2001:db8:1:2::/64"; text that is no address unchanged."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.version == 6:
        mapped = parsed.ipv4_mapped
        return str(mapped) if mapped else str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
