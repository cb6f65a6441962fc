"""Regular expressions, schemas and grammars that are huge once they are compiled or applied."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def _nested(levels: int, key: str) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        part: Any = {"a": schema} if key == "properties" else schema
        schema = {"type": "object" if key == "properties" else "array", key: part}
    return schema


def _chain(length: int, link: Callable[[str], Any]) -> dict[str, Any]:
    definitions = {f"d{i}": link(f"#/$defs/d{i + 1}") for i in range(length)}
    return {"$defs": {**definitions, f"d{length}": {"type": "string"}}, "$ref": "#/$defs/d0"}


def _rules(count: int, rule: Callable[[int], str], last: str) -> str:
    return "\n".join([*(rule(i) for i in range(count)), last.format(count)])


ADVERSARIAL: dict[str, tuple[str, Any]] = {
    "counts in counts": ("regex", "((a{1,1000}){1,1000}){1,1000}"),
    "a million": ("regex", "a{1000000}"),
    "a late choice": ("regex", "(a|b)*a(a|b){900}"),
    "late choices": ("regex", "(?:.*a.{200}){20}"),
    "parentheses": ("regex", "(" * 3000 + "a" + ")" * 3000),
    "prefixes": ("regex", "|".join("a" * i for i in range(1, 140))),
    "sharp s": ("regex", f"(?i:{'ß' * 2000})"),
    "too long": ("regex", "a" * 20_000),
    "levels": ("json_schema", _nested(95, "properties")),
    "lists": ("json_schema", _nested(95, "items")),
    "too many levels": ("json_schema", _nested(5000, "items")),
    "references": ("json_schema", _chain(1900, lambda to: {"$ref": to})),
    "too many references": ("json_schema", _chain(30_000, lambda to: {"$ref": to})),
    "doubled references": (
        "json_schema",
        _chain(
            40,
            lambda to: {"type": "object", "properties": {"a": {"$ref": to}, "b": {"$ref": to}}},
        ),
    ),
    "all of references": (
        "json_schema",
        _chain(1900, lambda to: {"allOf": [{"$ref": to}, {"type": "string"}]}),
    ),
    "all of any": (
        "json_schema",
        {
            "allOf": [
                {"anyOf": [{"properties": {f"p{i}{j}": {"type": "string"}}} for j in (0, 1)]}
                for i in range(16)
            ]
        },
    ),
    "itself": ("json_schema", {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}),
    "properties": (
        "json_schema",
        {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(3500)}},
    ),
    "enumeration": ("json_schema", {"enum": [f"v{i}" * 20 for i in range(5000)]}),
    "a long list": (
        "json_schema",
        {"type": "array", "items": {"type": "string"}, "minItems": 10**6},
    ),
    "a pattern": ("json_schema", {"type": "string", "pattern": "(a|b)*a(a|b){400}"}),
    "patterns": (
        "json_schema",
        {
            "anyOf": [
                {"allOf": [{"pattern": f"a.*b.{{{i}}}"}, {"pattern": f".*c.{{{i}}}"}]}
                for i in range(20, 40)
            ]
        },
    ),
    "large numbers": ("json_schema", {"type": "integer", "minimum": 0, "maximum": 10**300}),
    "options": ("grammar", f'start: "b" {"a? " * 5000}\na: "a"'),
    "tripled rules": (
        "grammar",
        "start: r0\n" + _rules(400, lambda i: f"r{i}: r{i + 1} r{i + 1} r{i + 1}", 'r{}: "a"?'),
    ),
    "rules": ("grammar", "start: r0\n" + _rules(1900, lambda i: f'r{i}: r{i + 1} "b"', 'r{}: "a"')),
    "terminals": (
        "grammar",
        "start: A0\n" + _rules(1900, lambda i: f'A{i}: A{i + 1} "b"', 'A{}: "a"'),
    ),
    "too many rules": (
        "grammar",
        "start: r0\n" + _rules(40_000, lambda i: f"r{i}: r{i + 1}", 'r{}: "a"'),
    ),
    "ambiguity": ("grammar", 'start: x\nx: x x | "a" |'),
    "ranges": ("grammar", 'start: x~1..1000\nx: y~1..1000\ny: z~1..1000\nz: "a"'),
    "open parentheses": ("grammar", "start: " + "(" * 50_000),
    "doubled text": (
        "ebnf",
        'root ::= r60\nr0 ::= "a"\n'
        + _rules(60, lambda i: f"r{i + 1} ::= r{i} r{i}", "x{} ::= r0"),
    ),
    "a chain": (
        "ebnf",
        "root ::= r0\n" + _rules(1900, lambda i: f"r{i} ::= r{i + 1}", 'r{} ::= "a"'),
    ),
    "a million times": ("ebnf", 'root ::= "a"{1000000}'),
    "times of times": ("ebnf", 'root ::= ("a"{1,1000}){1,1000}'),
    "an included schema": (
        "grammar",
        'start: %json {"type": "array", "items": {"$ref": "#"}, "minItems": 100000}',
    ),
}
