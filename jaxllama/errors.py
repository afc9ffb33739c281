"""Every exception jaxllama raises on purpose, with its HTTP status and CLI exit code.

Raised everywhere, mapped once: to an exit code by the CLI, to a response by the server.
Wording: what was wrong (with the value) - what was expected - what to do.

    JaxLlamaError
    ├── CheckpointError             a model file or folder that cannot be used
    │   ├── UnknownFormat           nothing recognises the path
    │   ├── BadHeader               truncated, corrupt or hostile header
    │   ├── BadTensors              missing, surplus or misshapen tensors, all listed at once
    │   ├── UnsupportedModel        readable, but not an architecture or tensor type we run
    │   ├── BadTokenizer            vocabulary or chat template that cannot be built
    │   └── DownloadFailed          pull could not fetch or verify a model
    ├── PluginError                 a sampler, format or weight plugin that cannot be used
    │   ├── BrokenPlugin            it does not import, or breaks its socket's contract
    │   └── KnobClash               two samplers claim one knob
    ├── ConfigError                 flags or settings that contradict each other or the machine
    ├── RequestError                one request is wrong; the engine never sees it
    │   ├── InvalidParameter        a field is unknown or outside its bounds
    │   ├── PromptTooLong           prompt does not fit the context
    │   ├── TemplateError           a chat template refused or failed on these messages
    │   ├── ConstraintTooCostly     a grammar or schema takes more work than a request may use
    │   └── HttpError               refused for how it was sent; carries its own status and code
    ├── QueueFull                   too many requests wait already
    ├── WorkerDied                  a process that prepares requests was ended from outside
    ├── NotReady                    the model is still loading, or the server is going away
    ├── TimedOut                    the request took longer than the operator allows
    ├── Cancelled                   somebody who may do so has cancelled the request
    ├── SlowReader                  the client does not take in what it asked for
    ├── EngineStopped               the engine is gone; no request can be served
    └── GenerationFailed            this request failed inside the engine (NaN, repeated fault)
"""

MOST_LOGGED = 300  # characters of a message in the log


class JaxLlamaError(Exception):
    """Base of every error raised on purpose."""

    status = 500
    code = "internal_error"
    exit_code = 1
    retry_after: float | None = None  # seconds after which trying again may help

    def as_facts(self) -> dict[str, str | None]:
        """For the log: the code, the field of the request that is wrong, and the message."""
        field = getattr(self, "field", None)
        return {"reason": self.code, "field": field, "why": str(self)[:MOST_LOGGED]}


class CheckpointError(JaxLlamaError):
    """A model file or folder cannot be used."""

    code = "bad_checkpoint"
    exit_code = 2


class UnknownFormat(CheckpointError):
    """No weight format recognises the path."""


class BadHeader(CheckpointError):
    """A header is truncated, corrupt or claims what the file cannot hold."""


class BadTensors(CheckpointError):
    """Tensors are missing, surplus or misshapen; the message lists all of them."""


class UnsupportedModel(CheckpointError):
    """The file is sound, but holds an architecture or tensor type that is not supported."""


class BadTokenizer(CheckpointError):
    """The vocabulary or chat template in the checkpoint cannot be built."""


class DownloadFailed(CheckpointError):
    """A model could not be fetched or its checksum is wrong."""


class PluginError(JaxLlamaError):
    """An installed plugin cannot be used."""

    code = "bad_plugin"
    exit_code = 2


class BrokenPlugin(PluginError):
    """A plugin does not import or breaks the contract of its socket.

    `where` is the file and line in the author's code and `hint` what mends it, where known.
    """

    def __init__(self, message: str, *, where: str = "", hint: str = "") -> None:
        before, after = f"{where}: " if where else "", f"; {hint}" if hint else ""
        super().__init__(f"{before}{message}{after}")
        self.message, self.where, self.hint = message, where, hint


class KnobClash(PluginError):
    """Two samplers claim the same knob."""


class ConfigError(JaxLlamaError):
    """Settings contradict each other, the model or the machine."""

    code = "bad_config"
    exit_code = 2


class RequestError(JaxLlamaError):
    """One request is wrong; nothing else is affected."""

    status = 400
    code = "invalid_request"
    exit_code = 2


class InvalidParameter(RequestError):
    """A request field is unknown or outside its bounds; `field` names it."""

    code = "invalid_parameter"

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class PromptTooLong(RequestError):
    """The prompt leaves no room in the context."""

    code = "context_length_exceeded"


class TemplateError(RequestError):
    """The chat template refused or failed on these messages."""

    code = "template_error"


class ConstraintTooCostly(RequestError):
    """A schema, regex or grammar takes more time or memory than a request may use."""

    code = "constraint_too_costly"


class HttpError(RequestError):
    """A request is refused for how it was sent, before its fields are looked at."""

    def __init__(self, message: str, status: int, code: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class QueueFull(JaxLlamaError):
    """The waiting queue is at its limit; try again later."""

    status = 429
    code = "queue_full"

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class WorkerDied(JaxLlamaError):
    """A process that prepares requests ended for a reason that lies outside of the request."""

    status = 503
    code = "worker_died"
    retry_after = 1.0


class NotReady(JaxLlamaError):
    """No request is taken now: the model is loading, or the server is going away."""

    status = 503
    code = "not_ready"
    retry_after = 5.0


class TimedOut(JaxLlamaError):
    """The request took longer than this server allows."""

    status = 504
    code = "timeout"


class Cancelled(JaxLlamaError):
    """The request was cancelled by its id."""

    status = 409
    code = "cancelled"


class SlowReader(JaxLlamaError):
    """The client takes in its answer so slowly that it was given up."""

    status = 408
    code = "slow_reader"


class EngineStopped(JaxLlamaError):
    """The engine has stopped and serves no request; the cause is chained."""

    status = 503
    code = "engine_stopped"


class GenerationFailed(JaxLlamaError):
    """This one request failed inside the engine; its neighbours did not notice."""

    code = "generation_failed"
