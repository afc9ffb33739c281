"""Hosts: processes, usually on several machines, that run one model together.

JAX joins their devices to one mesh. Every process makes the same programs and must call them in the
same order, so one of them, host 0, decides: it alone takes requests, and tells the others each call
of a program over TCP before it makes the call itself (`engine/remote_calls.py`). A host that is
lost ends the whole group: its devices hold parts of every weight. Then each process ends with
`EXIT_CODE` and one line that says why, so that a supervisor can start the group again.

    hosts = jaxllama.hosts.join()
    llm = LLM.load("model", mesh="model=4", hosts=hosts)
    if hosts.leads:
        print(llm.generate("Hello").text)
        llm.close()
    else:
        llm.follow()
"""

import hmac
import json
import logging
import os
import queue
import secrets
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import jax
import numpy as np

from jaxllama.devices import prefer_platform
from jaxllama.errors import ConfigError, JaxLlamaError

logger = logging.getLogger(__name__)

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
EXIT_CODE = 75  # of a process whose group has lost a host: try again
JOIN_SECONDS = 300
BEAT_SECONDS = 1.0
LOST_SECONDS = 8.0  # without a word from a host
LONGEST = 256 << 20  # bytes of a message
CONTACT_BYTES = 256
HEADER = struct.Struct("!cI")  # kind and length of a message
BEAT, CALL, STOP, END = b"b", b"c", b"s", b"e"

Lose = Callable[[str], None]


class HostLink:
    """The connection to one other host."""

    def __init__(self, index: int, connection: socket.socket) -> None:
        self.index = index
        self._socket = connection
        self._lock = threading.Lock()
        connection.settimeout(LOST_SECONDS)  # of silence; every host says a word each second
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, kind: bytes, message: bytes = b"") -> None:
        """Send one message; raise OSError if the host does not take it.

        `kind` is BEAT (a sign of life), CALL (`message` is a device call), STOP (asks host 0 to end
        the group) or END (the group ends).
        """
        with self._lock:
            self._socket.sendall(HEADER.pack(kind, len(message)) + message)

    def receive(self, longest: int = LONGEST) -> tuple[bytes, bytes]:
        """Wait for a message and return its kind and content.

        Raises OSError if no message comes in time, or if the message has more than `longest` bytes.
        """
        kind, length = HEADER.unpack(self._read(HEADER.size))
        if length > longest:
            raise OSError(f"a message of {length} bytes; expected at most {longest}")
        return kind, self._read(length)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _read(self, count: int) -> bytes:
        found = bytearray()
        while len(found) < count:
            part = self._socket.recv(count - len(found))
            if not part:
                raise OSError("it closed the connection")
            found += part
        return bytes(found)


class HostGroup:
    """This process among the hosts of its group, and its connections to the others.

    Host 0 is connected to every other host, and each of these to host 0 alone.
    """

    def __init__(self, index: int, links: Sequence[HostLink], lose: Lose | None = None) -> None:
        """Start threads that listen to the other hosts, and one that sends them signs of life.

        `index` is this host's number; `links` are its connections to the others. `lose` is called
        on one of these threads, with the reason, if a host is lost; `lose` None: the process ends.
        """
        self.index = index
        self._links = links
        self._lose = lose or end_process
        self._has_ended = False
        self._calls: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        for link in links:
            threading.Thread(target=self._listen, args=(link,), daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()

    @property
    def leads(self) -> bool:
        """Say whether this is host 0, which takes requests and sends device calls to the others."""
        return self.index == 0

    def compare(self, key: str) -> None:
        """Raise ConfigError unless this host has loaded the same programs as host 0.

        `key` names the programs: host 0 sends its key, and the others compare theirs with it.
        """
        if self.leads:
            self.tell(key.encode())
        elif self.next_call() != key.encode():
            raise ConfigError(
                f"host {self.index} has loaded another model, or with other settings, than host 0; "
                f"expected the same on all hosts"
            )

    def tell(self, call: bytes) -> None:
        """Send a device call, as bytes, to all other hosts; only host 0 calls this.

        Does nothing after the group has ended.
        """
        if self._has_ended:
            return
        if not self.leads:
            raise JaxLlamaError(
                f"host {self.index} only follows host 0; expected that requests are sent to host 0"
            )
        for link in self._links:
            self._send(link, CALL, call)

    def next_call(self) -> bytes | None:
        """Wait for the next device call from host 0 and return it; None after the last one."""
        return self._calls.get()

    def ask_to_stop(self) -> None:
        """Ask host 0 to finish its requests and to end the group; the other hosts call this."""
        for link in self._links:
            self._send(link, STOP)

    def end(self) -> None:
        """Tell the other hosts that the group ends; a lost connection is no error after that."""
        if not self._has_ended:
            self._has_ended = True
            for link in self._links:
                self._send(link, END)

    def _send(self, link: HostLink, kind: bytes, message: bytes = b"") -> None:
        try:
            link.send(kind, message)
        except OSError as error:
            self._report_lost(link, error)

    def _listen(self, link: HostLink) -> None:
        """Receive the messages of one host, through `link`, until it ends or is lost.

        Runs on a thread.
        """
        while True:
            try:
                kind, message = link.receive()
            except OSError as error:
                self._report_lost(link, error)
                self._calls.put(None)
                return
            if kind == CALL:
                self._calls.put(message)
            elif kind == STOP:
                logger.info("host %d asks to stop", link.index)
                os.kill(os.getpid(), signal.SIGTERM)
            elif kind == END:
                self._has_ended = True
                self._calls.put(None)
                return

    def _beat(self) -> None:
        """Send a sign of life to the other hosts each second; runs on a thread."""
        while not self._has_ended:
            for link in self._links:
                self._send(link, BEAT)
            time.sleep(BEAT_SECONDS)

    def _report_lost(self, link: HostLink, error: OSError) -> None:
        if not self._has_ended:
            self._has_ended = True
            silent = isinstance(error, TimeoutError)
            why = f"no word from it for {LOST_SECONDS:.0f} s" if silent else str(error)
            self._lose(
                f"host {link.index} is lost ({why}); host {self.index} ends, because every host "
                f"holds a part of the model: start all hosts again"
            )


def end_process(reason: str) -> NoReturn:
    """Log the reason and end this process at once, because threads may wait for a lost host."""
    logger.critical(reason)
    logging.shutdown()
    os._exit(EXIT_CODE)


def join(
    address: str | None = None,
    count: int | None = None,
    index: int | None = None,
    *,
    platform: str | None = None,
) -> HostGroup:
    """Join the other processes, before anything else uses JAX, and return this one's group.

    `address` is that of host 0 ("name:port"), `count` the number of processes, `index` the number
    of this one. Without them, the variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID are read, or JAX finds them out: under Slurm, Kubernetes, MPI and on TPU pods.
    `platform` is cpu, gpu or tpu.
    """
    if platform is not None:
        prefer_platform(platform)
    address = address or os.environ.get(ADDRESS)
    count = number_in(COUNT) if count is None else count
    index = number_in(INDEX) if index is None else index
    try:
        jax.distributed.initialize(address, count, index, initialization_timeout=JOIN_SECONDS)
        index, count = jax.process_index(), jax.process_count()
        links = accept_others(count, address) if index == 0 else [connect()]
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"the hosts cannot join: {' '.join(str(error).split())[:300]}; expected {ADDRESS} "
            f"(name:port of host 0), {COUNT} and {INDEX} in the environment of every process, or a "
            f"cluster that JAX knows"
        ) from error
    logger.info("host %d of %d has joined", index, count)
    return HostGroup(index, links)


def number_in(variable: str) -> int | None:
    """Return the whole number in an environment variable; None if it is not set."""
    text = os.environ.get(variable)
    if text is None:
        return None
    if not text.isdecimal():
        raise ConfigError(f"{variable} is {text!r:.80}; expected a number from 0 on")
    return int(text)


def accept_others(count: int, address: str | None) -> list[HostLink]:
    """Return the links to all other hosts, in order of their numbers, once all are connected.

    Only host 0 calls this. `count` is the number of all hosts, host 0 included; `address` is that
    of host 0 ("name:port"), None if it is not given.
    """
    key = secrets.token_hex(16)
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    with socket.create_server(
        ("", 0), family=family, dualstack_ipv6=family == socket.AF_INET6
    ) as server:
        contact = {"host": own_host(address), "port": server.getsockname()[1], "key": key}
        share(json.dumps(contact).encode())
        server.settimeout(JOIN_SECONDS)
        links: dict[int, HostLink] = {}
        while len(links) < count - 1:
            try:
                link = greet(server.accept()[0], key)
            except TimeoutError as error:
                missing = sorted(set(range(1, count)) - set(links))
                raise ConfigError(
                    f"no connection from the hosts {missing} in {JOIN_SECONDS} s; expected that "
                    f"they can reach {contact['host']}:{contact['port']}"
                ) from error
            if link is not None and 0 < link.index < count:
                links[link.index] = link
    return [links[index] for index in sorted(links)]


def greet(connection: socket.socket, key: str) -> HostLink | None:
    """Check the key of a host that has connected, and return the link to it.

    Closes the connection and returns None if the key is wrong.
    """
    link = HostLink(-1, connection)
    try:
        _, message = link.receive(CONTACT_BYTES)
        told, _, index = message.decode("ascii").partition(" ")
        if hmac.compare_digest(told, key):
            return HostLink(int(index), connection)
    except (OSError, ValueError):
        pass
    link.close()
    return None


def connect() -> HostLink:
    """Connect this host, which is not host 0, to host 0, and return the link.

    Host 0 sends its address and the key to all processes through JAX.
    """
    contact = json.loads(share(None))
    try:
        connection = socket.create_connection((contact["host"], contact["port"]), JOIN_SECONDS)
    except OSError as error:
        raise ConfigError(
            f"host 0 cannot be reached at {contact['host']}:{contact['port']}: {error}"
        ) from error
    link = HostLink(0, connection)
    link.send(CALL, f"{contact['key']} {jax.process_index()}".encode())
    return link


def share(message: bytes | None) -> bytes:
    """Give the bytes `message` of host 0 to all hosts; all hosts must call this together.

    The other hosts pass None, and get the bytes of host 0 as the result. `message` has at most
    CONTACT_BYTES bytes.
    """
    from jax.experimental import multihost_utils  # noqa: PLC0415 - needed here alone

    padded = np.frombuffer((message or b"").ljust(CONTACT_BYTES), np.uint8)
    found: Any = multihost_utils.broadcast_one_to_all(padded)
    return np.asarray(found).astype(np.uint8).tobytes().rstrip()


def own_host(address: str | None) -> str:
    """Return the name or IP address under which the other hosts reach this host, host 0.

    `address` is the given address of host 0 ("name:port"), whose name is returned. None: the IP
    address of this machine in its network is returned, or its host name if there is no network.
    """
    if address:
        return address.rpartition(":")[0].strip("[]")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing; chooses the interface
            return str(probe.getsockname()[0])
        except OSError:
            return socket.gethostname()
