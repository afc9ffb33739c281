"""The tokenizer readers: one function per kind of file or folder.

Called by the weight formats. Knows no file itself.
"""

from jaxllama.text.from_folder import tokenizer_from_folder
from jaxllama.text.from_gguf import tokenizer_from_gguf
from jaxllama.text.from_json import tokenizer_from_json
from jaxllama.text.from_llama2c import tokenizer_from_llama2c
from jaxllama.text.from_sentencepiece import tokenizer_from_sentencepiece
from jaxllama.text.from_tiktoken import tokenizer_from_tiktoken
from jaxllama.text.model_file import tokenizer_from_model

__all__ = [
    "tokenizer_from_folder",
    "tokenizer_from_gguf",
    "tokenizer_from_json",
    "tokenizer_from_llama2c",
    "tokenizer_from_model",
    "tokenizer_from_sentencepiece",
    "tokenizer_from_tiktoken",
]
