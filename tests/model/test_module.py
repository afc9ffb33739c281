"""Modules: paths of parameters, and values given to them."""

import pytest

from jaxllama.model.module import Module, Parameter, give_values, parameters_of


class Inner(Module):
    def __init__(self):
        self.weight = Parameter(2, 3, axes=("in", None))
        self.bias = None


class Outer(Module):
    def __init__(self):
        self.scale = 0.5
        self.blocks = [Inner() for _ in range(11)]
        self.first = Inner()


def test_parameters_have_dotted_paths_in_the_order_of_names_and_places():
    paths = [path for path, _ in parameters_of(Outer())]
    assert paths == [*(f"blocks.{i}.weight" for i in range(11)), "first.weight"]


def test_a_parameter_has_a_shape_and_an_axis_per_dimension():
    (_, with_axes), (_, without) = *parameters_of(Inner()), ("", Parameter(4))
    assert (with_axes.shape, with_axes.axes) == ((2, 3), ("in", None))
    assert (without.shape, without.axes) == ((4,), (None,))


def test_values_reach_every_parameter():
    module = Outer()
    blocks = {i: {"weight": f"weight {i}"} for i in range(11)}
    give_values(module, {"blocks": blocks, "first": {"weight": "other"}})
    values = [each.value for _, each in parameters_of(module)]
    assert values == [*(f"weight {i}" for i in range(11)), "other"]


@pytest.mark.parametrize("values", [{}, {"weight": 1, "bias": 2}])
def test_missing_and_unknown_values_are_refused(values):
    with pytest.raises(KeyError, match=r"weight|bias"):
        give_values(Inner(), values)
