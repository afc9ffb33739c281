"""The token counts of OpenAI's responses."""

from msgspec import UNSET

from jaxllama.request import Usage
from jaxllama.serve.dialects.openai.shapes import sum_up

PLAIN = Usage(prompt=5, reused=2, generated=7)
DRAFTED = Usage(prompt=5, reused=2, generated=7, drafted=6, accepted=4)


def test_drafted_tokens_of_all_answers_are_counted():
    details = sum_up([DRAFTED, PLAIN, DRAFTED], 3).completion_tokens_details
    assert details.accepted_prediction_tokens == 8
    assert details.rejected_prediction_tokens == 4
    assert details.reasoning_tokens is UNSET


def test_without_drafts_there_are_no_details_of_them():
    assert sum_up([PLAIN, None], 1).completion_tokens_details is UNSET
