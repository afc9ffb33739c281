"""Texts are packed into few tiles, each once and whole."""

import hypothesis
import pytest
from hypothesis import strategies

from jaxllama.engine.encoding import USUAL, most_texts, pack, tile_sizes


@hypothesis.given(
    strategies.lists(strategies.integers(2, 256), max_size=60), strategies.sampled_from([256, 512])
)
@hypothesis.settings(max_examples=60, deadline=None)
def test_every_text_is_in_one_tile_that_holds_it(lengths, longest):
    sizes = tile_sizes(longest)
    tiles = pack(lengths, sizes)
    assert sorted(index for tile in tiles for index in tile.texts) == list(range(len(lengths)))
    for tile in tiles:
        assert tile.filled == sum(lengths[index] for index in tile.texts) <= tile.size
        assert tile.size in sizes and len(tile.texts) <= most_texts(tile.size)


def test_short_texts_share_tiles_and_a_lone_one_gets_a_small_one():
    sizes = tile_sizes(512)
    assert [tile.size for tile in pack([9], sizes)] == [32]
    assert [tile.size for tile in pack([9] * 5, sizes)] == [128]
    assert [(tile.size, tile.filled) for tile in pack([300, 200, 12], sizes)] == [(512, 512)]
    tiles = pack([16] * 80, sizes)
    assert len(tiles) == 10 and {tile.size for tile in tiles} == {USUAL}


@pytest.mark.parametrize(
    ("longest", "sizes"),
    [
        (24, (32,)),
        (256, (32, 128, 256)),
        (500, (32, 128, 512)),
        (512, (32, 128, 512)),
        (8192, (32, 128, 512, 2048, 8192)),
    ],
)
def test_the_largest_tile_holds_the_longest_text(longest, sizes):
    assert tile_sizes(longest) == sizes
