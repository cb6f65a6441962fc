"""Regular expressions that Python's `re` and the engine read alike, each of bounded length."""

from __future__ import annotations

import itertools

UNSUPPORTED = [
    *(r"\bword\b", r"(?=a)b", r"(?!a)b", r"(?<=a)b", r"(?<!a)b", r"(a)\1", r"a$b", r"(?P=name)"),
    *("[", "(", ")", "a{2,1}", "*a", "(?P<n>a", r"\Za", "[z-a]", "(?>a)", r"(?(1)a|b)"),
]
"""Look-around, back-references and malformed patterns; the compiler has to say so."""

UNSATISFIABLE = [r"[^\s\S]", r"[^\d\D]?[^\w\W]", r"\w{0}[^\w\W]x"]
"""Nothing matches."""

CATASTROPHIC = [
    *(r"(a+)+$", r"(a|a)*b?", r"(a*)*", r"([a-z]+)*[0-9]?", r"(.*)(.*)(.*)(.*)x?", r"(a|aa)+"),
    *(r"(x+x+)+y?", r"(.{0,20}){0,20}", r"(?:a?){30}a{30}", r"(\w+\s?)*!?", r"([^,]*,){0,25}P?"),
]
"""Exponential for a matcher that backtracks."""

_ATOMS = (
    *("cat", "[a-f]", "[^x-z\n]", r"\d", r"\w", r"\W", r"\s", r"\S", r"\D", ".", r"\.", "é"),
    *("(?:ab|cd)", "(?P<g>xy?)", "(?:un)?do"),
)
_REPEATS = ("", "?", "{2}", "{1,3}", "{0,4}", "{3}?", "{5}")

_WRITTEN = [
    *("yes|no", "(yes|no|maybe)", "true|false", "[+-]?[0-9]{1,5}", r"[0-9]{1,3}\.[0-9]{2}"),
    *(r"\d{4}-\d{2}-\d{2}", r"\d{2}:\d{2}(:\d{2})?", r"\(\d{3}\) \d{3}-\d{4}", "#[0-9a-fA-F]{6}"),
    *(r"[a-z]{1,8}@[a-z]{1,8}\.(com|org)", r"https://[a-z]{1,10}\.org(/[a-z]{1,6}){0,2}"),
    *(r"(25[0-5]|2[0-4]\d|1?\d?\d)(\.(25[0-5]|2[0-4]\d|1?\d?\d)){3}", "[A-Z]{2}[0-9]{6}"),
    *("(Mr|Mrs|Ms)\\. [A-Z][a-z]{2,8}", '"[a-z ]{0,12}"', r"\[(\d(, \d){0,4})?\]", r"\{\}"),
    *(r'\{"name": "[A-Z][a-z]{1,8}", "age": [0-9]{1,2}\}', "(a|b)(c|d)(e|f)", "((a|b){2}c){2}"),
    *("(?i)hello", "(?i:he)llo", "a(?:b(?:c(?:d)?)?)?", "x(y(z)?)?", "(foo|foobar)baz?", "|a"),
    *("[αβγ]{3}", "日本(語)?", "[😀-😅]{2}", "ſ|s", "naïve|naive", r"\x41\u00e9", r"\t\n?", r"\\"),
    *("^abc$", "^(?:abc)$", r"\Aabc", "^$", "[]a]", "[a-]", r"[\]\-]", "[.]{3}", r"[\w.-]{1,6}"),
    *("(?s:.){3}", "(?m:a)", "(?x: a b )", "[0-9a-f]{8}-[0-9a-f]{4}", "A{5}", "(AB){3,4}", "a{0}b"),
    *("(?:the|a) (?:cat|dog) (?:sat|ran)", "(?:red|green|blue)(?:, (?:red|green|blue)){0,2}"),
    *("1(?:0(?:0)?)?", "0|[1-9][0-9]{0,3}", "-?(?:0|[1-9]\\d{0,2})(?:\\.\\d{1,2})?", "[IVX]{1,4}"),
    *(r"\$\d{1,3}(?:,\d{3})?", "[01]{8}", "(?:[01]{4} ){2}[01]{4}", "(?:ha){1,5}!", "[A-D]"),
    *(r"\w{2}\d{2}\s\S", r"[^\W\d_]{3}", r"[\s\d]{3}", r"[^\s]{2}", r"[^\w]{2}", r"[\W\d]{2}"),
    *("SELECT (?:\\*|[a-z]{1,6}) FROM [a-z]{1,6};", r"<b>[a-z]{1,8}</b>", r"\[[ x]\] [a-z]{1,9}"),
]


def supported() -> list[str]:
    """Patterns written by hand, then every atom in every repetition, then mixtures."""
    repeated = [f"(?:{atom}){r}" for atom, r in itertools.product(_ATOMS, _REPEATS)]
    nameless = [atom for atom in _ATOMS if "?P<" not in atom]
    triples = zip(nameless * 4, nameless[3:] * 4, nameless[5:] * 4, strict=False)
    mixed = [f"(?:{a}){{1,2}}|{b}{c}" for a, b, c in triples]
    return [*_WRITTEN, *repeated, *dict.fromkeys(mixed)]
