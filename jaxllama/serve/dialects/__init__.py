'''Dialects: each translates one HTTP API. Everything that the author of a dialect imports is here.

A dialect is a class with a table of endpoints and the form of its errors. It converts its JSON to
an `Ask`, and the events of the answers to its JSON. The rest of the server handles sockets, keys,
limits, queueing, cancellation, pings, timeouts and logs.

    class Body(RequestShape, kw_only=True):        # the request; unknown fields are reported
        text: str
        stream: bool | None = None

    class Answer(msgspec.Struct):                  # the whole answer
        text: str

    class Piece(msgspec.Struct):                   # a chunk of the stream
        text: str
        done: bool = False

    SAY = Endpoint("POST", "/say", "Continue a text", body=Body, answer=Answer, events=(Piece,),
                   takes_knobs=True, framing=JSON_LINES)

    async def say(request, service):
        body, knobs = await SAY.read(request, service, Body)                    # checked
        ask = Ask(prompts=[body.text], knobs=knobs)                             # translated
        return await write_answer(request, service, ask, SayForm, stream=body.stream,
                                  framing=SAY.framing)

    class SayForm(TextForm):                       # events -> chunks, or the whole answer
        def piece(self, index, text):
            return Piece(text)
        def last(self, index):
            return Piece("", done=True)
        def whole(self):
            return Answer(self.text)

    class Say(Dialect):
        """A dialect for an example."""

        name = "say"
        endpoints = {SAY: say}

        def error_body(self, error):
            return {"error": str(error)}

`service` is that of the model which the request names, loaded and kept for the time of the handler:
in the field `model` of a body that has one (`ModelBody`), else in the query (`?model=`). A route
that needs no model says `uses=Uses.NOTHING`.

`jaxllama new dialect NAME` writes a package with such a dialect; its entry point is in the group
`jaxllama.dialects`. For a wrong request, raise a `JaxLlamaError` and do not catch it: before the
first byte it becomes a response with `error.status` and `error_body(error)`, later a last chunk.
The bounds of core fields and knobs are checked when the `Ask` is prepared; a dialect checks only
what the tables of these bounds do not know.

Work that takes longer than a millisecond must not run on the event loop:
`await service.off_loop(f, request[CALLER], size=characters)` calls f(model) in a thread
(tokenizing, templates). Work that needs a slot but does not generate, such as `Probes.peek`, waits
in the fair queue like a generation: `await service.ask_engine([Question(begin, tokens)],
request[CALLER])`. `score_texts`, `vectors_of_model` and `vectors_of_encoder` do that.
'''

from jaxllama.errors import HttpError, InvalidParameter, JaxLlamaError
from jaxllama.request import Event, Finished, FinishReason, Token, Usage
from jaxllama.serve.answering.models import ModelBody, check_model
from jaxllama.serve.answering.problem import ErrorBody, error_body
from jaxllama.serve.answering.scores import Prefix, score_texts
from jaxllama.serve.answering.text_form import TextForm
from jaxllama.serve.answering.vectors import vectors_of_encoder, vectors_of_model
from jaxllama.serve.answering.writing import AnswerForm, write_answer
from jaxllama.serve.dialect import Dialect, DialectOptions
from jaxllama.serve.endpoints import Endpoint, RequestShape, Serves
from jaxllama.serve.guard import open_to_all
from jaxllama.serve.keys import CALLER
from jaxllama.serve.model_choice import Uses
from jaxllama.serve.wire import JSON_LINES, SSE, Framing, ResponseStream, one_body, one_json
from jaxllama.service import Ask, GenerationService, Question
from jaxllama.service.answers import Answers

__all__ = [
    "CALLER",
    "JSON_LINES",
    "SSE",
    "AnswerForm",
    "Answers",
    "Ask",
    "Dialect",
    "DialectOptions",
    "Endpoint",
    "ErrorBody",
    "Event",
    "FinishReason",
    "Finished",
    "Framing",
    "GenerationService",
    "HttpError",
    "InvalidParameter",
    "JaxLlamaError",
    "ModelBody",
    "Prefix",
    "Question",
    "RequestShape",
    "ResponseStream",
    "Serves",
    "TextForm",
    "Token",
    "Usage",
    "Uses",
    "check_model",
    "error_body",
    "one_body",
    "one_json",
    "open_to_all",
    "score_texts",
    "vectors_of_encoder",
    "vectors_of_model",
    "write_answer",
]
