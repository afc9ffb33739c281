"""What dialects share: conversations, prompts, models, constraints, answers, scores and vectors.

Knows no dialect. Authors of a dialect import it from `jaxllama.serve.dialects`.
"""
