"""Text: tokenizers, incremental decoding, special tokens. No arrays, no requests."""
