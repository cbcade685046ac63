import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.errors import ConfigError
from millrace.layout import Layout


@given(st.integers(1, 10_000), st.integers(1, 64))
def test_names_round_trip(nodes, gpus) -> None:
    layout = Layout.parse(f"n{nodes}_gpu{gpus}")
    assert (layout.nodes, layout.gpus_per_node) == (nodes, gpus)
    assert layout.world_size == nodes * gpus
    assert str(layout) == f"n{nodes}_gpu{gpus}"


MALFORMED = ["", "n1", "n0_gpu1", "n1_gpu0", "n01_gpu1", "N1_gpu1", " n1_gpu1", "n1_gpu1\n"]
MALFORMED += ["n1_gpu2x", "n-1_gpu1", "n1_gpu1.5", "n1_gpu٤", "n1٢_gpu1", "n1_gpu1; rm -rf ~"]


@pytest.mark.parametrize("name", MALFORMED)
def test_anything_else_is_refused(name) -> None:
    with pytest.raises(ConfigError, match="expected n<nodes>_gpu<GPUs per node>") as caught:
        Layout.parse(name)
    assert repr(name) in str(caught.value)


def test_layouts_sort_by_size() -> None:
    names = ["n10_gpu1", "n2_gpu4", "n2_gpu10", "n1_gpu1"]
    ordered = [str(layout) for layout in sorted(map(Layout.parse, names))]
    assert ordered == ["n1_gpu1", "n2_gpu4", "n2_gpu10", "n10_gpu1"]
