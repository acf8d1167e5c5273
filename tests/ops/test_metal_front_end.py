"""Every Metal source of the package passes the second front end, and faults planted in it do not. No GPU and no Mac is needed."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import NamedTuple

import mlx.core as mx
import pytest
from compile_metal import captured
from metal_cpu import KernelFault, metal_on_cpu
from metal_cpu.capture import Launch
from metal_cpu.front_end import front_end

from energy_flow_mlx.config import PRESETS
from energy_flow_mlx.nn.precision import DTYPES
from energy_flow_mlx.ops import kernel

from .test_cuda_syntax import CALLS, differentiate

OP = re.compile(rf"custom_kernel_({'|'.join(CALLS)})_([a-z]+)_[0-9a-f]{{12}}")
KERNEL = re.compile(r"(template <[^<>]*>\s*)?\[\[kernel\]\] void \w+\(.*?\) \{\n", re.DOTALL)


class Fault(NamedTuple):
    """What is planted at program scope and at the beginning of a kernel's body, and what must be said to it."""

    scope: str
    body: str
    said: str


FAULTS = {
    "static member": Fault("struct Planted { static constexpr uint size = 3; };", "", "program scope variable must reside in constant address space"),
    "program-scope constexpr": Fault("constexpr uint PLANTED = 3;", "", "program scope variable must reside in constant address space"),
    "address-space cast": Fault("", "threadgroup float planted_array[2]; device float* planted_pointer = (device float*)&planted_array[0];", "'__local float *' to '__global float *' converts between mismatching address spaces"),
    "address-space assignment": Fault("", "threadgroup float planted_array[2]; device float* planted_pointer = &planted_array[0];", "cannot initialize a variable of type '__global float *"),
    "address-space argument": Fault("inline float planted(device float* p) { return *p; }", "float planted_array = 1; planted(&planted_array);", "no matching function for call to 'planted'"),
    "unqualified pointer": Fault("", "float planted_array[2] = {}; float* planted_pointer = planted_array;", "no address space: planted_pointer '"),
    "unqualified reference": Fault("", "float planted_array = 1; float& planted_reference = planted_array;", "no address space: planted_reference '"),
    "unqualified parameter": Fault("inline float planted(float (&planted_array)[2]) { return planted_array[0]; }", "", "no address space: planted_array '"),
    "threadgroup array in a helper": Fault("inline float planted() { threadgroup float planted_array[2]; return planted_array[0]; }", "", "non-kernel function variable cannot be declared in local address space"),
    "threadgroup array in a block": Fault("", "{ threadgroup float planted_array[2]; }", "can only be declared in the outermost scope of a kernel function"),
    "static local": Fault("", "static uint planted = 1;", "static local variable must reside in constant address space"),
    "variable-length array": Fault("", "int planted_size = int(metal::floor(2.5f)); float planted_array[planted_size];", "array size is not a constant expression"),
    "double": Fault("", "double planted = 1;", "attempt to use a poisoned identifier"),
    "recursion": Fault("inline float planted(float x) { return x > 1.0f ? planted(x - 1.0f) : x; }", "", "recursion: planted calls itself"),
    "function pointer": Fault("inline float planted(float x) { return x; }", "float (*planted_pointer)(float) = planted;", "pointers to functions are not allowed"),
    "write to constant": Fault("CONSTANT float PLANTED[2] = {0.5f, 1.0f};", "PLANTED[0] = 1.0f;", "read-only variable is not assignable"),
    "ambiguous max": Fault("", "float planted = metal::max(1.5f, 1);", "call to 'max' is ambiguous"),
    "simd_sum of bool": Fault("", "bool planted = simd_sum(true);", "Metal has no simd_sum of this type"),
    "erf": Fault("", "float planted = metal::erf(1.0f);", "attempt to use a poisoned identifier"),
    "lambda": Fault("", "auto planted = [](float x) { return x; };", "lambda in "),
}  # fmt: skip


@pytest.fixture(scope="module")
def launches() -> dict[str, Launch]:
    """One of each body of the kernel files, by op and body."""
    found: dict[str, Launch] = {}
    for launch in captured(PRESETS, ["float32"]):  # of all: some bodies are for large sizes alone
        match = OP.match(launch.name)
        assert match, launch.name
        found.setdefault(f"{match[1]}/{match[2]}", launch)
    return found


def planted(launch: Launch, fault: Fault) -> Launch:
    match = KERNEL.search(launch.source)
    assert match, launch.name
    before, after = launch.source[: match.start()], launch.source[match.end() :]
    return replace(launch, source=f"{before}{fault.scope}\n{match.group()}{fault.body}\n{after}")


def test_every_source_of_all_presets_and_dtypes_passes() -> None:
    found = front_end(captured(PRESETS, list(DTYPES)))
    assert len(found) > 200
    assert not {name: messages for name, messages in found.items() if messages}


def test_every_body_is_looked_at(launches: dict[str, Launch]) -> None:
    assert {place.split("/")[0] for place in launches} == set(CALLS)
    assert set(launches) == {f"{op}/{body}" for op in CALLS for body in kernel.read_source(op)[1]}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_planted_in_any_body_is_caught(name: str, launches: dict[str, Launch]) -> None:
    fault = FAULTS[name]
    found = front_end(planted(launch, fault) for launch in launches.values())
    missed = {
        name: messages for name, messages in found.items() if not any(fault.said in message for message in messages)
    }
    assert len(found) == len(launches) and not missed


def test_a_plain_addition_to_an_atomic_output_is_caught(launches: dict[str, Launch]) -> None:
    faults = {}
    for place, launch in launches.items():
        if atomic := [argument.name for argument in launch.arguments if argument.type.startswith("atomic<")]:
            faults[place] = planted(launch, Fault("", f"{atomic[0]}[0] += 1;", ""))
    assert set(faults) == {"collect/ranges", "collect/add"}
    for messages in front_end(faults.values()).values():
        assert any("no viable overloaded '+='" in message for message in messages)


@pytest.mark.parametrize(
    ("op", "with_space"), [("neuron", "static constexpr CONSTANT uint"), ("advance", "CONSTANT constexpr float")]
)
def test_constants_of_the_kernels_need_their_address_space(
    op: str, with_space: str, launches: dict[str, Launch]
) -> None:
    own = {place: launch for place, launch in launches.items() if place.startswith(f"{op}/")}
    assert all(with_space in launch.source for launch in own.values())
    without = [
        replace(launch, source=launch.source.replace(with_space, with_space.replace("CONSTANT ", "")))
        for launch in own.values()
    ]
    for messages in front_end(without).values():
        assert any("program scope variable must reside in constant address space" in message for message in messages)


THREADS = {
    "thread_position_in_grid": "thread_position_in_grid.x",
    "thread_position_in_threadgroup": "thread_position_in_threadgroup.x",
    "thread_index_in_threadgroup": "thread_index_in_threadgroup",
    "thread_index_in_simdgroup": "thread_index_in_simdgroup",
}


@pytest.mark.parametrize("op", CALLS)
def test_a_barrier_that_not_all_threads_reach_is_caught_where_kernels_run(op: str, launches: dict[str, Launch]) -> None:
    """No front end sees it: the first harness does, in the first body of each file that runs."""
    (function, arguments), *_ = CALLS[op][0]
    place = next(place for place in launches if place.startswith(f"{op}/"))
    *_, line = re.findall(r"^#line .*$", launches[place].source, re.MULTILINE)  # where the body begins
    index = next(THREADS[name] for _, name in launches[place].attributes if name in THREADS)
    divergent = f"if ({index} % 2 == 0) threadgroup_barrier(mem_flags::mem_threadgroup);\n{line}"
    with (
        pytest.raises(KernelFault, match="barrier divergence"),
        metal_on_cpu(caches=[kernel.build], edit=(line, divergent)),
    ):
        differentiate(function, arguments, mx.float32)
