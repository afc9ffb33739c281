"""Settings: everything an operator can set about the server, in one table.

Options of the command line are generated from it; read everywhere under `serve/`, changed nowhere.
"""

from dataclasses import dataclass, field

from jaxllama.errors import ConfigError
from jaxllama.service.bounds import Bounds, check_positive, setting

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Settings:
    """How the server behaves; durations in seconds."""

    host: str = setting("127.0.0.1", "address to listen on; 0.0.0.0 lets the network in")
    port: int = setting(8000, "port to listen on; 0 chooses a free one")
    api_keys: tuple[str, ...] = setting((), "key that clients must bring, may be given again")
    allowed_hosts: tuple[str, ...] = setting((), "name in the Host header that is ours as well")
    cors_origins: tuple[str, ...] = setting((), "web origin that may use the API from a browser")
    tls_certificate: str | None = setting(None, "certificate chain, PEM; makes it https")
    tls_key: str | None = setting(None, "private key of the certificate, PEM")
    strict: bool = setting(
        False, "refuse unknown fields of requests; they are ignored and named in the answer"
    )
    connections: int = setting(1024, "most connections at a time")
    body_bytes: int = setting(2 << 20, "most bytes in the body of a request")
    json_depth: int = setting(64, "most levels of nesting in a body")
    header_seconds: float = setting(10.0, "until the head of a request must have come")
    body_seconds: float = setting(30.0, "until the body of a request must have come")
    keepalive_seconds: float = setting(75.0, "an idle connection is kept so long")
    ping_seconds: float = setting(10.0, "a stream that has nothing to say says so so often")
    stall_seconds: float = setting(30.0, "a client may take nothing in for so long")
    drain_timeout: float = setting(30.0, "for finishing what runs, once asked to stop")
    log_json: bool = setting(False, "log lines are JSON objects")
    log_prompts: bool = setting(False, "log what clients ask, too")
    bounds: Bounds = field(default_factory=Bounds)

    def __post_init__(self) -> None:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ConfigError("TLS needs both a certificate and its key; give both or neither")
        check_positive(self, may_be_zero=("port", "drain_timeout"))

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        return self.host in LOOPBACK
