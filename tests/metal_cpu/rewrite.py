"""From Metal Shading Language to C++ that clang accepts: the few spellings a header cannot supply. Lines keep their numbers."""

from __future__ import annotations

import functools
import re

COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
ATTRIBUTE = re.compile(r"\[\[[^\[\]]*\]\]")
NUMBER = r"(?:\d+\.\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?|\d+[eE][+-]?\d+)"
LITERAL = re.compile(rf"(?<![\w.])({NUMBER})(h|H|bf|BF)?(?![\w.])")
VECTOR = re.compile(r"\bvec<([^<>;]*)>\s*\(")
# A declaration of threadgroup memory, as against a pointer or a parameter: no *, & or parenthesis before its semicolon.
THREADGROUP = re.compile(
    r"\bthreadgroup\s+((?:[^;(){}*&=<>,]|<[^<>;]*>)+?)\s*(\b\w+\s*(?:\[[^;{}]*?\]\s*)*(?:,\s*\w+\s*(?:\[[^;{}]*?\]\s*)*)*);"
)
# An array parameter: a C++ parameter may not itself be in an address space, the pointer it decays to may.
PARAMETER = re.compile(
    r"\b((?:const\s+)?(?:device|constant|threadgroup)(?:\s+[\w:<>]+)+?)\s+(\w+)\s*\[[^\[\]]*\]((?:\[[^\[\]]*\])*)(?=\s*[,)])"
)


@functools.cache
def to_cpp(source: str) -> str:
    """`source` as C++17 over the shim headers.

    Comments become blanks; attributes such as [[buffer(0)]] go (clang refuses them on an instantiation); `1.0` becomes
    `1.0f` (MSL has no double), `1.0h` and `1.0bf` casts; `vec<T, N>(...)` a call; threadgroup arrays ask the runtime;
    array parameters in an address space become the pointers they decay to.
    """
    source = COMMENT.sub(lambda m: re.sub(r"[^\n]", " ", m.group()), source)
    source = ATTRIBUTE.sub("", source)
    source = LITERAL.sub(_literal, source)
    source = VECTOR.sub(r"make_vector<vec<\1>>(", source)
    declarations = iter(range(1_000_000))
    source = THREADGROUP.sub(lambda m: _threadgroup_declaration(m, declarations), source)
    return PARAMETER.sub(lambda m: f"{m[1]} (*{m[2]}){m[3]}" if m[3] else f"{m[1]}* {m[2]}", source)


def _literal(match: re.Match[str]) -> str:
    number, suffix = match.groups()
    if suffix is None:
        return f"{number}f"
    return f"(({'half' if suffix.lower() == 'h' else 'bfloat'}){number}f)"


def _threadgroup_declaration(match: re.Match[str], declarations: object) -> str:
    element, declarators = match.groups()
    statements = []
    for declarator in re.split(r",\s*(?![^\[]*\])", declarators):
        name, dimensions = re.fullmatch(r"\s*(\w+)\s*(.*?)\s*", declarator, re.DOTALL).groups()  # type: ignore[union-attr]
        number = next(declarations)  # type: ignore[call-overload]
        statements.append(
            f"typedef {element} {name}_storage{dimensions}; threadgroup {name}_storage& {name} = "
            f'metal::cpu::threadgroup_memory<{name}_storage>({number}, "{name}");'
        )
    newlines = "\n" * (match.group().count("\n") - "".join(statements).count("\n"))
    return " ".join(statements) + newlines
