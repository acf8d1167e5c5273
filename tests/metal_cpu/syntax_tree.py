"""What clang's syntax tree shows and no error does: memory of no named address space, recursion, lambdas."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

FUNCTION = re.compile(
    r"(?:Function|CXXMethod|CXXConstructor|CXXDestructor|CXXConversion)Decl (0x\w+)(?: parent 0x\w+)?(?: prev (0x\w+))?"
)
TYPED = re.compile(
    r"(?:Var|ParmVar|Field|Function|CXXMethod)Decl 0x|(?:CStyle|CXXStatic|CXXReinterpret|CXXFunctional|CXXAddrspace)CastExpr 0x"
)
CALLED = re.compile(r" (?:Function|CXXMethod) (0x\w+) '|MemberExpr 0x.* (0x\w+)$")
READ = re.compile(
    r"Decl 0x|Function 0x|CXXMethod 0x|MemberExpr 0x|LambdaExpr 0x|__generic"
)  # most lines are none of these
OF_THE_OBJECT = re.compile(r"\)( const)? __generic")  # of a member function: what `this` points to


@dataclass
class _Function:
    name: str
    depth: int
    implicit: bool  # declared by the compiler: copies, moves
    calls: set[str] = field(default_factory=set)


def scan(lines: Iterable[str]) -> list[str]:
    """What Metal refuses in one translation unit, from the text that `clang -ast-dump` prints.

    `__generic` in a declaration or a cast that is written out: a pointer or reference without an address space, to which C++ for OpenCL
    gives memory of any kind, and Metal none before version 4.1. Templates are looked at as they are instantiated.
    """
    functions: dict[str, _Function] = {}
    first_of: dict[str, str] = {}  # a later declaration of a function -> the first
    around: list[_Function] = []
    found: list[str] = []
    for line in filter(READ.search, lines):
        depth = len(line) - len(line.lstrip("| `-"))
        while around and depth <= around[-1].depth:
            around.pop()
        implicit = " implicit " in line or bool(around and around[-1].implicit)
        if "__generic" in line and not implicit and TYPED.search(line):
            before, *quoted = line.split("'")
            if any("__generic" in OF_THE_OBJECT.sub(")", text) for text in quoted):
                found.append(f"no address space: {before.split()[-1]} '{quoted[0]}'{_inside(around)}")
        if "LambdaExpr 0x" in line:
            found.append(f"lambda{_inside(around)}")
        if "Decl 0x" in line and (declared := FUNCTION.search(line)):
            address, earlier = declared.groups()
            first = first_of.setdefault(address, first_of.get(earlier, earlier) or address)
            name = line.split("'")[0].split()[-1]
            own = functions.setdefault(first, _Function(name, depth, implicit))
            around.append(_Function(name, depth, implicit, own.calls))
        elif around and (called := CALLED.search(line)):
            around[-1].calls.add(called[1] or called[2])
    calls = {first: {first_of.get(address, address) for address in own.calls} for first, own in functions.items()}
    found += [
        f"recursion: {functions[address].name} calls itself"
        for address in functions
        if _reaches(calls, address, address)
    ]
    return list(dict.fromkeys(found))


def _inside(around: list[_Function]) -> str:
    return f" in {around[-1].name}" if around else ""


def _reaches(calls: Mapping[str, set[str]], start: str, end: str) -> bool:
    """Whether a chain of one or more calls leads from `start` to `end`."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        for address in calls.get(waiting.pop(), ()):
            if address == end:
                return True
            if address not in seen:
                seen.add(address)
                waiting.append(address)
    return False
