"""What Triton and torch make of the kernels for GPUs that are not here; run by `test_triton_sums`."""

import re

import pytest
import torch
import triton
from torch._dynamo.backends.common import aot_autograd
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from millrace.systems.groundwater import triton_sums
from millrace.systems.groundwater.gno import NeighbourTable

KERNELS = {
    "sums_of_rows": ("out", "kernel", "f", "indptr", "point", "order", "channels", "width"),
    "products_of_ends": ("out", "g", "f", "row", "index", "edges", "channels", "width"),
}
CONSTANTS = {
    "sums_of_rows": {"ORDERED": True, "EDGES": triton_sums.EDGES, "BLOCK": 256},
    "products_of_ends": {"EDGES": 8, "BLOCK": 128},
}
PLACES = ("indptr", "point", "order", "row", "index")


def built(name, arch, values, **constants):
    """A kernel for a GPU, in all languages on the way."""
    constants = CONSTANTS[name] | constants
    types = dict.fromkeys(KERNELS[name], values) | dict.fromkeys(PLACES, "*i64")
    types |= {"out": "*fp32", "edges": "i32", "channels": "i32", "width": "i32"}
    known = dict.fromkeys(constants, "constexpr")
    signature = {one: types[one] for one in KERNELS[name]} | known
    source = ASTSource(getattr(triton_sums, name), signature, constants)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32)).asm


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(("arch", "values"), [(80, "*fp32"), (90, "*bf16"), (90, "*fp16")])
def test_machine_code_without_atomic_additions(name, arch, values):
    for constants in ({}, {"channels": 1, "width": 1}):
        code = built(name, arch, values, **constants)
        assert code["cubin"].startswith(b"\x7fELF")
        assert not re.search(r"\b(atom|red)\.", code["ptx"])
        # In half precision numbers are read; they are added and multiplied in single precision.
        assert re.search(r"\bfma\.rn\.f32|\bmul\.f32|\bfma\.rn\.f32x2", code["ptx"])
        assert not re.search(r"\b(fma|add|mul)[.\w]*\.(bf16|f16)", code["ptx"])


class Driver:
    """Of a GPU that is not here: enough to see what is made for it."""

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0


@pytest.mark.parametrize("dynamic", [False, True])
def test_graphs_of_torch_hold_the_kernels(dynamic):
    triton.runtime.driver.set_active(Driver())
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return graph

    def forward(kernel, f):
        return triton_sums.kernel_sum(kernel.sin(), f, table).cos()

    indptr, index = torch.tensor([0, 2, 2, 5]), torch.tensor([0, 1, 3, 1, 0])
    table = NeighbourTable.of(indptr, index, 4)
    compiled = torch.compile(
        forward,
        fullgraph=True,
        dynamic=dynamic,
        backend=aot_autograd(fw_compiler=keep, bw_compiler=keep),
    )
    # It is compiled, and then there is no GPU.
    with pytest.raises(AttributeError, match="get_current_stream"):
        compiled(torch.randn(5, 6, requires_grad=True), torch.randn(4, 2, 6, requires_grad=True))
    launches = [
        node.kwargs
        for node in graphs[0].graph.nodes
        if node.target is torch.ops.higher_order.triton_kernel_wrapper_functional
    ]
    # What a kernel does not write need not be copied.
    assert [one["tensors_to_clone"] for one in launches] == [["out"]]
