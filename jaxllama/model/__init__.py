"""The maths of a Llama and of encoders: pure functions of weights."""
