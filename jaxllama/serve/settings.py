"""Settings: all options of the server, in one table.

Options of the command line are generated from it. Read everywhere under `serve/`, never changed.
"""

import ipaddress
from dataclasses import dataclass, field

from jaxllama.errors import ConfigError
from jaxllama.service.bounds import Bounds, check_positive, setting

LONGEST_KEY = 4096  # characters
VLLM = "vllm"  # the only other server whose metrics names are known
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Settings:
    """Options of the server; durations in seconds."""

    host: str = setting(
        "127.0.0.1", "listen on this address; 0.0.0.0 allows access from the network"
    )
    port: int = setting(8000, "listen on this port; 0 chooses a free one")
    api_keys: tuple[str, ...] = setting((), "accept only clients with this key; may be repeated")
    allowed_hosts: tuple[str, ...] = setting((), "accept this Host header, too; may be repeated")
    cors_origins: tuple[str, ...] = setting(
        (), "allow web pages of this origin (CORS); may be repeated"
    )
    tls_certificate: str | None = setting(None, "serve https with this certificate chain (PEM)")
    tls_key: str | None = setting(None, "use this private key of the certificate (PEM)")
    dialects: tuple[str, ...] = setting(
        (), "serve these APIs only, with commas between their names; all without this option"
    )
    dialect_options: tuple[str, ...] = setting(
        (), "set an option of a dialect, such as rllama.path=/infer; may be repeated"
    )
    root_dialect: str | None = setting(
        None, "let this dialect answer at the path /, in place of the chat page"
    )
    strict: bool = setting(False, "refuse requests with unknown fields instead of ignoring them")
    connections: int = setting(
        1024, "accept this many connections at a time; a new one then closes the longest idle one"
    )
    connections_per_address: int = setting(
        512, "accept this many connections of one address or IPv6 /64 network; 0: no bound"
    )
    trusted_addresses: tuple[str, ...] = setting(
        (),
        "do not bound connections of this address or network, such as a reverse proxy's; may be "
        "repeated; this machine is never bounded",
    )
    body_bytes: int = setting(2 << 20, "accept at most this many bytes in the body of a request")
    json_depth: int = setting(64, "accept at most this many levels of nesting in a body")
    header_seconds: float = setting(10.0, "wait this many seconds for the headers of a request")
    body_seconds: float = setting(30.0, "wait this many seconds for the body of a request")
    keepalive_seconds: float = setting(75.0, "close a connection after this many idle seconds")
    ping_seconds: float = setting(10.0, "send a ping into a stream after this many silent seconds")
    stall_seconds: float = setting(30.0, "drop a client that reads nothing for this many seconds")
    drain_timeout: float = setting(30.0, "let requests finish for this many seconds after a signal")
    embedding_model: str | None = setting(
        None,
        "serve this encoder at /v1/embeddings, too: minilm (84 MB), hf:owner/name or a "
        "sentence-transformers folder",
    )
    lora_folder: str | None = setting(
        None, "let clients load and unload the LoRA adapters in this folder (see --lora-slots)"
    )
    metrics_names: tuple[str, ...] = setting(
        (),
        "serve /metrics under the names of this server, too, for routers that read them: vllm; may "
        "be repeated",
    )
    kv_events: str | None = setting(
        None,
        "publish which blocks of tokens are cached at this ZeroMQ address, as vLLM does, such as "
        "tcp://*:5557; prompts can be read there (needs jaxllama[events])",
    )
    kv_events_topic: str = setting("", "publish them under this topic")
    kv_events_replay: str | None = setting(
        None, "send past ones again to subscribers that ask at this address, such as tcp://*:5558"
    )
    bandwidth: float | None = setting(
        None,
        "memory bandwidth of the device in GB/s, for the share of it that /metrics shows; needed "
        "where jaxllama does not know the chip, as on CPUs",
    )
    log_json: bool = setting(False, "write log lines as JSON objects")
    log_prompts: bool = setting(False, "write the prompts of clients to the log, too")
    bounds: Bounds = field(default_factory=Bounds)

    def __post_init__(self) -> None:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ConfigError("TLS needs both a certificate and its key; give both or neither")
        self._check_keys()
        self._check_trusted()
        if self.kv_events is None and (self.kv_events_topic or self.kv_events_replay):
            raise ConfigError("a topic or an address to send events again needs --kv-events, too")
        unknown = set(self.metrics_names) - {VLLM}
        if unknown:
            raise ConfigError(f"metrics names {min(unknown)!r} are unknown; expected {VLLM!r}")
        check_positive(self, may_be_zero=("port", "drain_timeout", "connections_per_address"))

    def _check_keys(self) -> None:
        """Raise ConfigError for an API key that is empty, too long, or has spaces around it."""
        for number, key in enumerate(self.api_keys, 1):
            if key != key.strip() or not 0 < len(key) <= LONGEST_KEY:
                raise ConfigError(
                    f"API key {number} is empty, blank at an end, or longer than {LONGEST_KEY} "
                    f"characters; expected a secret text without spaces around it"
                )

    def _check_trusted(self) -> None:
        for each in self.trusted_addresses:
            try:
                ipaddress.ip_network(each)
            except ValueError as error:
                raise ConfigError(
                    f"trusted address {each!r} is invalid: {error}; expected an address such as "
                    f"10.0.0.7 or a network such as 10.0.0.0/8"
                ) from error

    def url_at(self, host: str, port: int) -> str:
        """Return the URL of the server at an address; `host` is a name, or an IP address."""
        scheme = "https" if self.tls_certificate else "http"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    @property
    def is_loopback(self) -> bool:
        """Whether the server listens only for this machine."""
        return self.host in LOOPBACK
