"""Graphs as JSON. Reading a file only builds nodes and values; no code of the file is run.

A file names its format, the version of this schema, and the SHA-256 of its graph. Each node and
value is an object: the name of its class under "is", then its fields. In plain data, a tuple is
`{"tuple": [...]}` and a dictionary is `{"dict": [[key, value], ...]}`. Unknown classes, fields
and types are refused. Each graph is validated (`sgl_mlx.compiler.graph.validate`) before it is
returned.
"""

from __future__ import annotations

import hashlib
import json
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from sgl_mlx.compiler.graph import nodes, values
from sgl_mlx.compiler.graph.choice_methods import CHOICES_METHODS
from sgl_mlx.compiler.graph.graph import Graph, Parameter
from sgl_mlx.compiler.graph.nodes import Line, Node
from sgl_mlx.compiler.graph.validate import check
from sgl_mlx.compiler.graph.values import Value
from sgl_mlx.errors import GraphError
from sgl_mlx.lang import choices, ir
from sgl_mlx.lang.choices import ChoicesSamplingMethod

FORMAT = "sgl-mlx graph"
VERSION = 2
_DEEPEST = 200
_WORDS: Mapping[str, type] = {
    kind.__name__: kind
    for kind in vars(ir).values()
    if isinstance(kind, type) and issubclass(kind, ir.Expr) and is_dataclass(kind)
    if kind is not ir.ExprList and not issubclass(kind, ir.Internal)
}
"""The expressions of the language that a graph may append, by class name."""
_CLASSES: Mapping[str, type] = {
    kind.__name__: kind
    for module in (values, nodes)
    for kind in vars(module).values()
    if isinstance(kind, type)
    and is_dataclass(kind)
    and ((issubclass(kind, Node) and kind is not Node) or kind in get_args(Value))
} | {"Graph": Graph, "Line": Line, "Parameter": Parameter}


def dumps(graph: Graph) -> str:
    """Return the graph as JSON text.

    Raises:
        GraphError: a constant in the graph is no plain data.
    """
    content = _encoded(graph)
    whole = {"format": FORMAT, "version": VERSION, "sha256": _digest(content), "graph": content}
    return json.dumps(whole, ensure_ascii=False, indent=1) + "\n"


def loads(text: str) -> Graph:
    """Read a graph from JSON text.

    Raises:
        GraphError: the text is no valid graph, was changed, or is of another version.
    """
    try:
        whole = json.loads(text, parse_constant=_refused)
    except (ValueError, RecursionError) as error:
        raise GraphError(f"this is no compiled program: it is no JSON ({error})") from None
    if not isinstance(whole, dict) or whole.get("format") != FORMAT:
        raise GraphError(f'this is no compiled program: its "format" is not {FORMAT!r}')
    _check_version(whole)
    content = whole.get("graph")
    if whole.get("sha256") != _digest(content):
        raise GraphError("this compiled program was changed or damaged: its checksum is wrong")
    made: Graph = _read(Graph, content, "graph")
    return check(made)


def _check_version(whole: Mapping[str, Any]) -> None:
    version = whole.get("version")
    if type(version) is not int or version < 1:
        raise GraphError(f"a compiled program has a version, this one has {version!r}")
    if version != VERSION:
        advice = "compile the program again" + (", or update sgl-mlx" if version > VERSION else "")
        raise GraphError(
            f"this compiled program is of version {version}; this sgl-mlx reads version {VERSION}: "
            + advice
        )


def save(graph: Graph, path: str | Path) -> None:
    """Write the graph to a file as JSON.

    Raises:
        GraphError: a constant in the graph is no plain data.
        OSError: the file cannot be written.
    """
    Path(path).write_text(dumps(graph), "utf-8")


def load(path: str | Path) -> Graph:
    """Read a graph from a JSON file.

    Raises:
        GraphError: the file holds no valid graph, was changed, or is of another version.
        OSError: the file cannot be read.
    """
    try:
        text = Path(path).read_text("utf-8")
    except UnicodeDecodeError:
        raise GraphError(f"{path} is no compiled program: it is no text in UTF-8") from None
    try:
        return loads(text)
    except GraphError as error:
        raise GraphError(f"{path}: {error}") from None


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


# -- writing ------------------------------------------------------------------------------------


def _encoded(thing: Any) -> Any:
    if is_dataclass(thing) and not isinstance(thing, type):
        kind = Graph if isinstance(thing, Graph) else type(thing)
        own = {
            f.name: (_plain if (kind, f.name) in _PLAIN_FIELDS else _field)(getattr(thing, f.name))
            for f in fields(thing)
        }
        return {"is": kind.__name__, **own}
    return _plain(thing)


def _field(thing: Any) -> Any:
    """Encode a field's content as JSON data. A tuple becomes a plain list.

    The list needs no mark: the annotation of the field says that it is a tuple.
    """
    if isinstance(thing, ChoicesSamplingMethod):
        return _method_name(thing)
    return list(map(_field, thing)) if isinstance(thing, tuple) else _encoded(thing)


def _method_name(method: ChoicesSamplingMethod) -> str:
    for name, known in CHOICES_METHODS.items():
        if known is method:
            return name
    raise GraphError(f"{method!r} cannot be written to a file: it is a method of the program's own")


def _plain(thing: Any) -> Any:
    if isinstance(thing, tuple):
        return {"tuple": list(map(_plain, thing))}
    if isinstance(thing, list):
        return list(map(_plain, thing))
    if isinstance(thing, Mapping):
        return {"dict": [[_plain(key), _plain(value)] for key, value in thing.items()]}
    if type(thing) in (str, int, bool, type(None)):
        return thing
    if type(thing) is float and thing == thing and abs(thing) != float("inf"):
        return thing
    raise GraphError(
        f"{thing!r} cannot be written to a file: it is no plain data, such as texts, finite "
        "numbers, True, False, None, and lists, tuples and dictionaries of these"
    )


# -- reading ------------------------------------------------------------------------------------

Made = TypeVar("Made")


def _read(kind: Any, content: Any, where: str) -> Any:
    """Read JSON content as the type of an annotation.

    Args:
        where: the path to the content, for error messages.

    Raises:
        GraphError: the content does not fit the type.
    """
    if where.count(".") > _DEEPEST:
        raise GraphError(f"this compiled program is nested more than {_DEEPEST} levels deep")
    origin = get_origin(kind)
    if origin is Literal:
        return content if content in get_args(kind) else _wrong(where, kind, content)
    if origin in (Union, types.UnionType):
        return _read_union(get_args(kind), content, where)
    if origin is tuple:
        return _read_tuple(get_args(kind), content, where)
    if is_dataclass(kind) or kind is ir.Expr:
        return _read_object(kind, content, where)
    return _SIMPLE.get(kind, _read_plain)(kind, content, where)


def _read_union(kinds: tuple[Any, ...], content: Any, where: str) -> Any:
    if isinstance(content, dict) and isinstance(content.get("is"), str):
        chosen = _CLASSES.get(content["is"])
        return _read(chosen, content, where) if chosen in kinds else _wrong(where, kinds, content)
    simple = [kind for kind in kinds if not is_dataclass(kind)]
    for kind in simple:
        if kind is type(content) or (kind is float and type(content) is int and int not in simple):
            return content
    return _wrong(where, kinds, content)


def _read_tuple(kinds: tuple[Any, ...], content: Any, where: str) -> Any:
    if not isinstance(content, list):
        return _wrong(where, tuple, content)
    if kinds[1:] == (...,):
        return tuple(_read(kinds[0], item, f"{where}.{i}") for i, item in enumerate(content))
    if len(content) != len(kinds):
        return _wrong(where, kinds, content)
    pairs = zip(kinds, content, strict=True)
    return tuple(_read(kind, item, f"{where}.{i}") for i, (kind, item) in enumerate(pairs))


def _read_object(kind: Any, content: Any, where: str) -> Any:
    if not isinstance(content, dict):
        return _wrong(where, kind, content)
    known = _WORDS if issubclass(kind, ir.Expr) else _CLASSES
    chosen: Any = known.get(str(content.get("is")))
    if chosen is None or not issubclass(chosen, kind):
        return _wrong(where, kind, content.get("is"))
    hints = _hints(chosen)
    given = {name: value for name, value in content.items() if name != "is"}
    unknown = given.keys() - hints.keys()
    if unknown:
        raise GraphError(f"{where}: {chosen.__name__} has no {sorted(unknown)[0]!r}")
    needed = [f for f in fields(chosen) if f.default is MISSING and f.default_factory is MISSING]
    for field in needed:
        if field.name not in given:
            raise GraphError(f"{where}: {chosen.__name__} lacks {field.name!r}")
    read = {name: _read(hints[name], value, f"{where}.{name}") for name, value in given.items()}
    return chosen(**read)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    own = {field.name for field in fields(kind)}
    if issubclass(kind, ir.Expr):
        hints = get_type_hints(kind, vars(ir) | vars(choices))
        hints = {name: _or_symbol(hint) for name, hint in hints.items()}
    else:
        hints = get_type_hints(kind)
    # Fields with arbitrary plain data mark tuples and dictionaries; see `_plain`.
    return {name: _PLAIN_FIELDS.get((kind, name), hints[name]) for name in own}


def _or_symbol(hint: Any) -> Any:
    """Extend the annotation of an expression's field: symbols are allowed where text is."""
    if hint in (str, Any):
        return str | values.SymbolicText
    if get_origin(hint) in (Union, types.UnionType):
        return Union[tuple(map(_or_symbol, get_args(hint)))]  # noqa: UP007
    if get_origin(hint) is tuple:
        return tuple[tuple(a if a is ... else _or_symbol(a) for a in get_args(hint))]  # type: ignore[misc]
    return hint


def _read_exact(kind: type, content: Any, where: str) -> Any:
    number = kind is float and type(content) is int
    return content if type(content) is kind or number else _wrong(where, kind, content)


def _read_plain(kind: Any, content: Any, where: str) -> Any:
    if isinstance(content, list):
        return [_read_plain(kind, item, f"{where}.{i}") for i, item in enumerate(content)]
    if isinstance(content, dict):
        return _read_marked(content, where)
    return content


def _read_marked(content: dict[str, Any], where: str) -> Any:
    if list(content) == ["tuple"] and isinstance(content["tuple"], list):
        return tuple(_read_plain(object, item, f"{where}.t") for item in content["tuple"])
    if list(content) == ["dict"] and isinstance(content["dict"], list):
        pairs = [_read_plain(object, pair, f"{where}.d") for pair in content["dict"]]
        if all(isinstance(p, list) and len(p) == 2 and isinstance(p[0], str) for p in pairs):
            return dict(pairs)
    return _wrong(where, "plain data", content)


def _read_mapping(kind: Any, content: Any, where: str) -> Any:
    read = _read_plain(kind, content, where)
    return read if isinstance(read, dict) else _wrong(where, dict, content)


def _read_method(kind: Any, content: Any, where: str) -> ChoicesSamplingMethod:
    if not isinstance(content, str) or content not in CHOICES_METHODS:
        raise GraphError(f"{where}: unknown choice method {content!r}")
    return CHOICES_METHODS[content]


def _wrong(where: str, kind: Any, content: Any) -> Any:
    expected = getattr(kind, "__name__", str(kind))
    raise GraphError(f"{where}: expected {expected}, got {str(content)[:60]!r}")


_SIMPLE: Mapping[Any, Callable[[Any, Any, str], Any]] = {
    **dict.fromkeys((str, int, float, bool), _read_exact),
    Mapping: _read_mapping,
    ChoicesSamplingMethod: _read_method,
}
_PLAIN_FIELDS: Mapping[tuple[type, str], Any] = {
    **{(Parameter, name): object for name in ("value", "default")},
    **{(kind, "sampling"): Mapping for kind in (ir.Gen, nodes.Call)},
}
