"""Every exception that jaxllama raises on purpose, with its HTTP status and CLI exit code.

The CLI maps each to an exit code, the server to a response; both do so in one place.
Wording: the wrong value - the expected value - the remedy.

    JaxLlamaError
    ├── CheckpointError             a model file or folder that cannot be used
    │   ├── UnknownFormat           no weight format recognises the path
    │   ├── BadHeader               truncated, corrupt or hostile header
    │   ├── BadTensors              missing, surplus or misshapen tensors, all listed at once
    │   ├── UnsupportedModel        readable, but the architecture or tensor type is not supported
    │   ├── BadTokenizer            vocabulary or chat template that cannot be built
    │   └── DownloadFailed          pull could not fetch or verify a model
    ├── PluginError                 a sampler, format or weight plugin that cannot be used
    │   ├── BrokenPlugin            it does not import, or breaks its socket's contract
    │   └── KnobClash               two samplers claim one knob
    ├── ConfigError                 flags or settings that contradict each other or the machine
    ├── RequestError                one request is wrong and never reaches the engine
    │   ├── InvalidParameter        a field is unknown or outside its bounds
    │   ├── PromptTooLong           prompt does not fit the context
    │   ├── TemplateError           a chat template refused or failed on these messages
    │   ├── ConstraintTooCostly     a grammar or schema takes more work than a request may use
    │   ├── UnknownModel            the request names a model that this server does not have
    │   ├── ModelInUse              a model cannot be unloaded, because requests use it
    │   └── HttpError               wrong transfer of a request; has its own status and code
    ├── QueueFull                   the queue of waiting requests is full
    ├── WorkerDied                  a process that prepares requests was killed from outside
    ├── CannotStore                 the server's disk does not take a file, such as an upload
    ├── NotReady                    the model is still loading, or the server is shutting down
    ├── ReplicaLost                 the replica that answered a request has ended
    ├── ModelFailed                 the model that a request names could not be loaded
    ├── TimedOut                    the request took longer than the operator allows
    ├── Cancelled                   an authorised client has cancelled the request
    ├── SlowReader                  the client reads its answer too slowly
    ├── EngineStopped               the engine has stopped; no request can be served
    ├── CompiledLate                a program was compiled after the start, which was forbidden
    └── GenerationFailed            this request failed inside the engine (NaN, repeated fault)
"""

MOST_LOGGED = 300  # characters of a message in the log


class JaxLlamaError(Exception):
    """Base class of every error raised on purpose."""

    status = 500
    code = "internal_error"
    exit_code = 1
    retry_after: float | None = None  # seconds after which trying again may help

    def as_facts(self) -> dict[str, str | None]:
        """Return the log fields of the error: its code, the wrong request field, the message."""
        field = getattr(self, "field", None)
        return {"reason": self.code, "field": field, "why": str(self)[:MOST_LOGGED]}


class CheckpointError(JaxLlamaError):
    """A model file or folder cannot be used."""

    code = "bad_checkpoint"
    exit_code = 2


class UnknownFormat(CheckpointError):
    """No weight format recognises the path."""


class BadHeader(CheckpointError):
    """A header is truncated, corrupt, or describes more data than the file has."""


class BadTensors(CheckpointError):
    """Tensors are missing, surplus or misshapen; the message lists all of them."""


class UnsupportedModel(CheckpointError):
    """The file is valid, but its architecture or tensor type is not supported."""


class BadTokenizer(CheckpointError):
    """No tokenizer can be built from the vocabulary or chat template in the checkpoint."""


class DownloadFailed(CheckpointError):
    """A model could not be downloaded, or its checksum is wrong."""


class PluginError(JaxLlamaError):
    """An installed plugin cannot be used."""

    code = "bad_plugin"
    exit_code = 2


class BrokenPlugin(PluginError):
    """A plugin does not import or breaks the contract of its socket.

    `where` is the file and line in the author's code, and `hint` the remedy; "" if unknown.
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
    """One request is wrong; other requests are not affected."""

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


class UnknownModel(RequestError):
    """The request names a model that this server does not have; the message lists the names."""

    status = 404
    code = "model_not_found"

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.name = name


class ModelInUse(RequestError):
    """A model cannot be unloaded now, because it loads or requests use it."""

    status = 409
    code = "model_in_use"


class HttpError(RequestError):
    """The transfer of a request is wrong, so it is refused before its fields are read."""

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
    """A process that prepares requests ended for a reason outside of the request."""

    status = 503
    code = "worker_died"
    retry_after = 1.0


class CannotStore(JaxLlamaError):
    """The server cannot write a file that a request asks it to keep; its disk may be full."""

    status = 507
    code = "cannot_store"


class NotReady(JaxLlamaError):
    """The server takes no requests now: the model is loading, or the server is shutting down."""

    status = 503
    code = "not_ready"
    retry_after = 5.0


class ReplicaLost(JaxLlamaError):
    """The replica that answered a request has ended; the rest of its answer is lost."""

    status = 503
    code = "replica_lost"
    retry_after = 1.0

    def __init__(
        self, message: str = "the replica that answered was lost; send the request again"
    ) -> None:
        super().__init__(message)


class ModelFailed(JaxLlamaError):
    """The model that a request names could not be loaded; the message says why."""

    status = 503
    code = "model_failed"


class TimedOut(JaxLlamaError):
    """The request took longer than this server allows."""

    status = 504
    code = "timeout"


class Cancelled(JaxLlamaError):
    """The request was cancelled by its id."""

    status = 409
    code = "cancelled"


class SlowReader(JaxLlamaError):
    """The client reads its answer so slowly that the server ended the request."""

    status = 408
    code = "slow_reader"


class EngineStopped(JaxLlamaError):
    """The engine has stopped and serves no request; the cause is chained."""

    status = 503
    code = "engine_stopped"


class CompiledLate(JaxLlamaError):
    """Something was compiled after the start, which `--strict-compile` forbids."""

    code = "compiled_late"


class GenerationFailed(JaxLlamaError):
    """This request failed inside the engine; other requests are not affected."""

    code = "generation_failed"
