"""What the engine or the machine cannot do is refused at the edge, with the numbers."""

import dataclasses

import jax
import pytest

from jaxllama.errors import ConfigError, InvalidParameter
from jaxllama.intake import Intake
from jaxllama.kernels.cpu import attention as cpu_attention
from jaxllama.kernels.cpu import library
from jaxllama.limits import LIMITS
from jaxllama.loading import choose_kernels
from jaxllama.request import GenerationRequest
from jaxllama.testing import ByteTokenizer
from jaxllama.testing.scripted import SMALL, ScriptedEngine
from jaxllama_formats.chatml import ChatMl
from tests.support import MODEL

MOST = SMALL.max_stop_ids


def engine() -> ScriptedEngine:
    return ScriptedEngine(lambda _: b"abc")


def test_as_many_stop_ids_as_a_row_holds_are_accepted():
    full = engine()
    full.submit(GenerationRequest((1, 2), 3, stop_ids=tuple(range(MOST))))
    while not full.idle:
        full.step()
    assert full.ledger["finished"] == 1 and full.recovery.faults == 0


def test_more_stop_ids_than_a_row_holds_are_refused_by_the_engine():
    with pytest.raises(InvalidParameter, match=f"{MOST + 1} stop ids .* at most {MOST}"):
        engine().submit(GenerationRequest((1, 2), 3, stop_ids=tuple(range(MOST + 1))))


def test_end_tokens_of_the_model_count_and_are_refused_before_the_queue():
    most = LIMITS["stop_ids"].most

    class ManyEnds(ByteTokenizer):
        end_ids = tuple(range(100, 100 + MOST - most + 1))

    intake = Intake(ManyEnds(), ChatMl(), engine().bank, SMALL)
    intake.completion("abc", {"stop_ids": list(range(most - 1)), "max_tokens": 3})
    with pytest.raises(InvalidParameter, match="33 stop ids") as refused:
        intake.completion("abc", {"stop_ids": list(range(most)), "max_tokens": 3})
    assert "stop_ids" in str(refused.value)
    intake.completion("abc", {"stop_ids": list(range(most)), "max_tokens": 3, "ignore_eos": True})


def test_kernels_of_the_processor_are_refused_where_jax_runs_on_a_gpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(ConfigError, match=r"kernels is 'cpu', but JAX runs on gpu devices"):
        choose_kernels("cpu", None, MODEL)
    assert choose_kernels("auto", None, MODEL) == "gpu"
    assert choose_kernels("xla", None, MODEL) == "xla"


@pytest.mark.skipif(not library.available(), reason=library.why_not() or "the kernels are there")
@pytest.mark.parametrize("size", [16, 24, 100, 120, 272])
def test_head_size_without_a_kernel_runs_on_plain_jax_alone(size, caplog):
    """Plain attention beside the other kernels gives a row other bits in other company."""
    assert size not in cpu_attention.SIZES
    model = dataclasses.replace(MODEL, head_dim=size)
    assert choose_kernels("auto", None, model) == "xla"
    assert f"head size is {size}; the C++ kernels take 32 to 256 in steps of 16" in caplog.text
    with pytest.raises(ConfigError, match=f"head size is {size}.*--kernels xla"):
        choose_kernels("cpu", None, model)
    assert choose_kernels("auto", None, dataclasses.replace(MODEL, head_dim=112)) == "cpu"
