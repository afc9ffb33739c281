import jax
import jax.numpy as jnp
import numpy as np

from jaxllama.engine.parcel import pack, size_of, unpack

TREE = {
    "tokens": np.arange(-3, 4, dtype=np.int32).reshape(7),
    "seed": np.array([0, 2**32 - 1], np.uint32),
    "hot": np.float32(0.1),
    "last": np.bool_(True),
    "wants": np.array([[True, False], [False, True]]),
    "codes": np.arange(250, 256, dtype=np.uint8).reshape(2, 3),
    "halves": np.array([1.5, -0.0, np.inf], np.float16),
    "nobody": np.zeros((0, 3), np.int32),
}


def test_a_parcel_is_unpacked_bit_for_bit_inside_a_program():
    parcel = pack(TREE)
    found = jax.jit(lambda raw: unpack(raw, TREE))(parcel)
    assert parcel.shape == (size_of(TREE),)
    for name, leaf in TREE.items():
        assert found[name].dtype == leaf.dtype
        assert np.asarray(found[name]).tobytes() == leaf.tobytes()
        assert found[name].shape == leaf.shape


def test_shapes_alone_tell_how_to_unpack():
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), TREE)
    assert size_of(like) == len(pack(TREE))
    found = unpack(jnp.asarray(pack(TREE)), like)
    assert np.array_equal(found["wants"], TREE["wants"])
