"""The language as frozen nodes. What a node means is the interpreter's business.

Nodes are joined with `+`, strings included: `"2+2=" + gen("x") + "\\n"`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from sgl_mlx import bounds
from sgl_mlx.core import SamplingParams
from sgl_mlx.errors import ProgramError

if TYPE_CHECKING:
    from sgl_mlx.lang.choices import ChoicesSamplingMethod

REGEX_INT = r"[-+]?[0-9]+[ \n]*"
REGEX_FLOAT = r"[-+]?[0-9]*\.?[0-9]+[ \n]*"
REGEX_BOOL = r"(True|False)"
REGEX_STR = r"\"[\w\d\s]*\""
REGEX_STRING = REGEX_STR

CONSTRAINTS = frozenset({"regex", "json_schema", "dtype", "grammar", "ebnf"})
"""Sampling parameters that restrict what is written; a `gen` has one of them at most."""

Role = Literal["system", "user", "assistant"]


class Symbol:
    """Text that only a run knows. The compiler's symbols stand where an expression holds text."""

    def __add__(self, other: str) -> str:
        raise NotImplementedError


class Expr:
    """Anything a program may append to its state.

    Attributes:
        asks: whether the backend has to answer before the stream goes on.
    """

    asks: ClassVar[bool] = False

    def __add__(self, other: object) -> ExprList:
        return ExprList.of(self, other)

    def __radd__(self, other: object) -> ExprList:
        return ExprList.of(other, self)


@dataclass(frozen=True, repr=False)
class ExprList(Expr):
    """Expressions one after another; never nested."""

    items: tuple[Expr, ...] = ()

    @classmethod
    def of(cls, *values: object) -> ExprList:
        return cls(tuple(leaf for value in values for leaf in leaves(as_expr(value))))

    @property
    def expr_list(self) -> list[Expr]:
        """The expressions as SGLang lists them: a `gen` stands before what splits its reasoning."""
        split = ((i.gen, i) if isinstance(i, SeparateReasoning) else (i,) for i in self.items)
        return [expression for pair in split for expression in pair]

    def __repr__(self) -> str:
        return f"ExprList({list(self.items)})"


@dataclass(frozen=True, repr=False)
class Text(Expr):
    value: str

    def __repr__(self) -> str:
        return f"Constant({self.value!r})"


@dataclass(frozen=True, repr=False)
class Gen(Expr):
    """A continuation by the model; `sampling` holds only what the program gave."""

    asks = True
    name: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sampling_params(self) -> SamplingParams:
        """All sampling parameters, those not given at their defaults."""
        return SamplingParams.of(self.sampling)

    def __repr__(self) -> str:
        return f"Gen({self.name!r})"


@dataclass(frozen=True, repr=False)
class Select(Expr):
    """The likeliest of the choices, appended and kept under `name`."""

    asks = True
    name: str | None
    choices: tuple[str, ...]
    choices_method: ChoicesSamplingMethod
    temperature: float = 0.0

    def __repr__(self) -> str:
        return (
            f"Select({self.name}, choices={list(self.choices)}, "
            f"choices_method={self.choices_method})"
        )


@dataclass(frozen=True, repr=False)
class SeparateReasoning(Expr):
    """A `gen` whose reasoning part goes to the variable `<name>_reasoning_content`."""

    asks = True
    gen: Gen
    model_type: str | None = None

    @property
    def name(self) -> str:
        """The variable that holds the reasoning."""
        # Added, not formatted: the name may be a Symbol.
        return ("None" if self.gen.name is None else self.gen.name) + "_reasoning_content"

    def process_name_for_reasoning(self, name: str) -> str:
        """The variable that holds the reasoning of a `gen` with this name."""
        return f"{name}_reasoning_content"

    def __repr__(self) -> str:
        return f"SeparateReasoning(model_type={self.model_type}, name={self.name})"


@dataclass(frozen=True, repr=False)
class RoleBegin(Expr):
    role: Role

    def __repr__(self) -> str:
        return f"RoleBegin({self.role})"


@dataclass(frozen=True, repr=False)
class RoleEnd(Expr):
    role: Role

    def __repr__(self) -> str:
        return f"RoleEnd({self.role})"


@dataclass(frozen=True, repr=False)
class VarScopeBegin(Expr):
    name: str

    def __repr__(self) -> str:
        return f"VarScopeBegin({self.name})"


@dataclass(frozen=True, repr=False)
class VarScopeEnd(Expr):
    name: str

    def __repr__(self) -> str:
        return f"VarScopeEnd({self.name})"


class Internal(Expr):
    """A node that no program writes: streams and compiled runs make it."""


@dataclass(frozen=True, repr=False)
class Variable(Internal):
    """The text of a variable of another stream, appended when that stream has it."""

    name: str
    source: Any

    def __repr__(self) -> str:
        return f"Variable({self.name!r}, source={self.source!r})"


@dataclass(frozen=True, repr=False)
class LateText(Internal):
    """Text that is put together when its turn comes, and may have to wait for what it needs."""

    text: Callable[[], Future[str]]

    def __repr__(self) -> str:
        return "LateText()"


@dataclass(frozen=True, repr=False)
class CommitLazy(Internal):
    """The fork hint: compute the text so far before the branches ask for it."""

    def __repr__(self) -> str:
        return "CommitLazy()"


@dataclass(frozen=True, repr=False)
class FetchAhead(Internal):
    """The compiler's hint: have the text so far at hand, for another stream that begins with it."""

    def __repr__(self) -> str:
        return "FetchAhead()"


@dataclass(frozen=True, repr=False)
class Image(Expr):
    source: Any

    def __repr__(self) -> str:
        return f"SglImage({self.source})"


@dataclass(frozen=True, repr=False)
class Video(Expr):
    source: str
    num_frames: int

    def __repr__(self) -> str:
        return f"SglVideo({self.source}, {self.num_frames})"


def as_expr(value: object) -> Expr:
    """A node for anything a program may append.

    Raises:
        ProgramError: for None and for objects that are neither text nor expressions.
    """
    if isinstance(value, Expr):
        return value
    if isinstance(value, str):
        return Text(bounds.text("text of a program", value, ProgramError))
    if isinstance(value, Symbol):
        return Text(cast(str, value))
    if value is None:
        raise ProgramError(
            "Tried to append None to state. Does a function in the expression lack a return?"
        )
    raise ProgramError(
        f"cannot append {bounds.shown(value)} ({type(value).__name__}) to a prompt: it takes "
        f"strings and expressions such as gen(); write str(...) to append its text"
    )


def leaves(expr: Expr) -> Iterable[Expr]:
    """Return the nodes of an expression in order."""
    return expr.items if isinstance(expr, ExprList) else (expr,)


# SGLang's names
SglExpr = Expr
SglExprList = ExprList
SglConstantText = Text
SglGen = Gen
SglSelect = Select
SglSeparateReasoning = SeparateReasoning
SglRoleBegin = RoleBegin
SglRoleEnd = RoleEnd
SglVarScopeBegin = VarScopeBegin
SglVarScopeEnd = VarScopeEnd
SglVariable = Variable
SglCommitLazy = CommitLazy
SglImage = Image
SglVideo = Video
SglSamplingParams = SamplingParams
