"""The maths of a Llama: pure functions of weights; the only importer of flax."""
