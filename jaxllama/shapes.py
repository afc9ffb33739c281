"""The dimension letters used in every array annotation, and the array aliases.

Imported by all modules that annotate arrays. Knows no arithmetic.

    S slots            L new tokens in this call     T cache columns       D width
    F ffn width        N query heads                 K key/value heads     G = N / K
    H head size        V vocabulary                  C candidates          E stop ids
    R rows of a tile   P prompt chunk                M listed log-probabilities
    U rotated pairs, H / 2   W words of 32 tokens
"""

from jax import Array
from jaxtyping import Bool, Float, Int, Int32, Integer, Key, Shaped, UInt8, UInt32

__all__ = ["Array", "Bool", "Float", "Int", "Int32", "Integer", "Key", "Shaped", "UInt8", "UInt32"]
