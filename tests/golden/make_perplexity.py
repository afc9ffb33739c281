"""Measure how llama.cpp and exact arithmetic judge a fixed text; run by hand, rarely.

Needs the project and, beside it, llama-cpp-python (not a dependency of the project):

    pip install llama-cpp-python
    python tests/golden/make_perplexity.py SmolLM2-135M-Instruct.Q4_1.gguf

Writes perplexity.json (figures, greedy continuations) and perplexity.npz (token ids of
english.txt and the surprise of each under both). "Exact" is the NumPy reference in float64 on the
file's dequantised weights. llama.cpp rounds activations to 8 bits before each product with a
quantised matrix, and its cache to float16, so it differs a little; on a copy of the file widened
to float32, with a float32 cache, it does neither and must agree with "exact" (checked here, so
either proves the other). A decoder that keeps activations must agree with "exact" too.

Convention: the whole text in one window, no begin token (the model adds none), perplexity =
exp(mean of -log p(token i | tokens 0..i-1), i = 1..n-1), in natural logarithms.
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np

from jaxllama.config import ModelConfig, Rope
from jaxllama.testing import numpy_llama

FOLDER = Path(__file__).parent
STEPS = 32
CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    'def fibonacci(n):\n    """Return the n-th Fibonacci number."""\n',
    "Zürich, naïve, 東京, 🙂🙃 and 1,234.56 €:",
    CHAT.format("What is the capital of France?"),
    CHAT.format("Name three fruits, one per line."),
)
MATRICES = {
    "attn_q": "attention.q",
    "attn_k": "attention.k",
    "attn_v": "attention.v",
    "attn_output": "attention.o",
    "attn_norm": "attention_norm",
    "ffn_gate": "ffn.gate",
    "ffn_up": "ffn.up",
    "ffn_down": "ffn.down",
    "ffn_norm": "ffn_norm",
    "token_embd": "embed",
    "output_norm": "final_norm",
    "output": "unembed",
}


def read_exact(path: str) -> tuple[ModelConfig, dict[Any, Any]]:
    """Config and float64 weights of a GGUF file of the llama architecture."""
    reader = gguf.GGUFReader(path)

    def value(key: str) -> Any:
        return reader.fields[f"llama.{key}"].contents()

    names = {tensor.name for tensor in reader.tensors}
    heads, width = value("attention.head_count"), value("embedding_length")
    config = ModelConfig(
        vocab_size=value("vocab_size"),
        width=width,
        layers=value("block_count"),
        heads=heads,
        kv_heads=value("attention.head_count_kv"),
        head_dim=width // heads,
        ffn_width=value("feed_forward_length"),
        max_context=value("context_length"),
        norm_eps=value("attention.layer_norm_rms_epsilon"),
        rope=Rope(value("rope.freq_base")),
        tied="output.weight" not in names,
    )
    params: dict[Any, Any] = {}
    for tensor in reader.tensors:
        array = gguf.dequantize(tensor.data, tensor.tensor_type)  # matrices: [out in]
        *parents, leaf = our_path(tensor.name)
        if parents[-1] in ("q", "k"):
            array = halve_pairs(array, config.head_dim)
        node = params
        for key in parents:
            node = node.setdefault(key, {})
        turned = array.T if array.ndim == 2 and parents != ["embed"] else array
        node[leaf] = np.ascontiguousarray(turned, dtype=np.float64)
    return config, params


def our_path(name: str) -> list[Any]:
    """Our path of a GGUF tensor."""
    parts = name.split(".")
    if parts[0] != "blk":
        return [MATRICES[parts[0]], parts[1]]
    return ["blocks", int(parts[1]), *MATRICES[parts[2]].split("."), parts[3]]


def halve_pairs(matrix: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of each head from neighbouring rotation pairs (0 1)(2 3).. to halves 0 2.. 1 3.."""
    rows, columns = matrix.shape
    pairs = matrix.reshape(rows // head_dim, head_dim // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def surprises(logits: np.ndarray, tokens: list[int]) -> np.ndarray:
    """-log p of tokens 1.. given those before; softmax in the precision of `logits`."""
    logits = logits[:-1]
    top = logits.max(axis=-1)
    log_total = top + np.log(np.exp(logits - top[:, None]).sum(axis=-1))
    return log_total - logits[np.arange(len(tokens) - 1), tokens[1:]]


def their_greedy(theirs: llama_cpp.Llama, prompt: list[int]) -> list[int]:
    """The likeliest continuation by llama.cpp, past end tokens."""
    theirs.reset()
    theirs.eval(prompt)
    tokens = []
    for _ in range(STEPS):
        tokens.append(int(theirs.scores[theirs.n_tokens - 1].argmax()))
        theirs.eval(tokens[-1:])
    return tokens


def exact_greedy(
    config: ModelConfig, params: dict[Any, Any], prompt: list[int]
) -> tuple[list[int], list[float]]:
    """The likeliest continuation by exact arithmetic, and each step's lead over the second."""
    tokens, leads = list(prompt), []
    for _ in range(STEPS):
        row = numpy_llama.logits(config, params, tokens, last=1)[0]
        second, first = np.sort(row)[-2:]
        leads.append(round(float(first - second), 4))
        tokens.append(int(row.argmax()))
    return tokens[len(prompt) :], leads


def widen(path: str, copy: Path) -> None:
    """Copy a GGUF file with every tensor as float32."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(copy, "llama")
    for key, field in reader.fields.items():
        if key == "general.file_type":
            writer.add_file_type(gguf.LlamaFileType.ALL_F32)
        elif not key.startswith("GGUF.") and key != "general.architecture":
            items = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], items)
    for tensor in reader.tensors:
        array = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def judge(
    path: str, tokens: list[int], prompts: list[list[int]], cache: int
) -> tuple[np.ndarray, list[list[int]]]:
    """Surprises of a text and greedy continuations of prompts, by llama.cpp."""
    theirs = llama_cpp.Llama(
        path,
        n_ctx=2048,
        n_batch=2048,
        n_ubatch=512,
        logits_all=True,
        verbose=False,
        type_k=cache,
        type_v=cache,
    )
    theirs.eval(tokens)
    surprise = surprises(theirs.scores[: len(tokens)], tokens)
    return surprise, [their_greedy(theirs, prompt) for prompt in prompts]


def perplexity(surprise: np.ndarray) -> float:
    """exp of the mean surprise."""
    return float(np.exp(surprise.mean(dtype=np.float64)))


def main(path: str) -> None:
    """Measure everything, print the figures, write both files."""
    text = (FOLDER / "english.txt").read_bytes()
    vocabulary = llama_cpp.Llama(path, vocab_only=True, verbose=False)
    tokens = vocabulary.tokenize(text, add_bos=False, special=False)
    prompts = [vocabulary.tokenize(p.encode(), add_bos=False, special=True) for p in PROMPTS]

    config, params = read_exact(path)
    exact_surprise = surprises(numpy_llama.logits(config, params, tokens), tokens)
    exact = [exact_greedy(config, params, prompt) for prompt in prompts]
    del params
    found_surprise, found = judge(path, tokens, prompts, llama_cpp.GGML_TYPE_F16)
    with tempfile.TemporaryDirectory() as folder:
        widen(path, wide := Path(folder) / "wide.gguf")
        wide_surprise, wide_found = judge(str(wide), tokens, prompts, llama_cpp.GGML_TYPE_F32)
    assert np.abs(wide_surprise - exact_surprise).max() < 1e-3, "NumPy and llama.cpp disagree"
    assert wide_found == [continuation for continuation, _ in exact]

    engine = f"llama-cpp-python {llama_cpp.__version__}, CPU"
    record = {
        "model": Path(path).name,
        "model_sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest(),
        "text_sha256": hashlib.sha256(text).hexdigest(),
        "tokens": len(tokens),
        "convention": "one window, no begin token, exp(mean -ln p(i | <i)) over i = 1..n-1",
        "command": "python tests/golden/make_perplexity.py SmolLM2-135M-Instruct.Q4_1.gguf",
        "perplexity": {
            "exact": perplexity(exact_surprise),
            "llama_cpp": perplexity(found_surprise),
            "llama_cpp_float32": perplexity(wide_surprise),
        },
        "how": {
            "exact": "jaxllama.testing.numpy_llama, float64, dequantised weights",
            "llama_cpp": f"{engine}, the file itself, float16 cache",
            "llama_cpp_float32": f"{engine}, the file widened to float32, float32 cache",
        },
        "greedy": [
            {
                "prompt": prompt,
                "prompt_ids": ids,
                "exact": continuation,
                "exact_leads": leads,  # of the likeliest logit over the second
                "exact_text": vocabulary.detokenize(continuation, special=True).decode(),
                "llama_cpp": theirs,
            }
            for prompt, ids, (continuation, leads), theirs in zip(
                PROMPTS, prompts, exact, found, strict=True
            )
        ],
    }
    print(json.dumps(record["perplexity"], indent=1))  # noqa: T201 - run by a person
    (FOLDER / "perplexity.json").write_text(
        json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    np.savez_compressed(
        FOLDER / "perplexity.npz",
        tokens=np.array(tokens, np.int32),
        llama_cpp=found_surprise.astype(np.float32),
        exact=exact_surprise.astype(np.float32),
    )


if __name__ == "__main__":
    main(sys.argv[1])
