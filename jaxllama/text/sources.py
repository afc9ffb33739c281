"""The tokenizer readers: one function per kind of file.

Called by the weight formats. Knows no file itself.
"""

from jaxllama.text.from_gguf import tokenizer_from_gguf
from jaxllama.text.from_json import tokenizer_from_json

__all__ = ["tokenizer_from_gguf", "tokenizer_from_json"]
