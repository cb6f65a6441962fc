"""The functions of the language, such as `gen` and `select`; each returns an expression."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any, cast

from sgl_mlx import bounds
from sgl_mlx.core import GREEDY_TEMPERATURE
from sgl_mlx.errors import ProgramError, RegexError
from sgl_mlx.lang.choices import ChoicesSamplingMethod, token_length_normalized
from sgl_mlx.lang.ir import (
    CONSTRAINTS,
    Expr,
    ExprList,
    Gen,
    Image,
    Role,
    RoleBegin,
    RoleEnd,
    Select,
    SeparateReasoning,
    Symbol,
    Video,
    as_expr,
    leaves,
)
from sgl_mlx.names import explains_keywords

_DTYPES = {int: "int", float: "float", str: "str", bool: "bool"}
_OWN_NAMES = {"max_tokens": "max_new_tokens", "min_tokens": "min_new_tokens"}


@explains_keywords
def gen(
    name: str | None = None,
    max_tokens: int | None = None,
    min_tokens: int | None = None,
    n: int | None = None,
    stop: str | Sequence[str] | None = None,
    stop_token_ids: Sequence[int] | None = None,
    stop_regex: str | re.Pattern[str] | Sequence[str | re.Pattern[str]] | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    frequency_penalty: float | None = None,
    presence_penalty: float | None = None,
    ignore_eos: bool | None = None,
    return_logprob: bool | None = None,
    logprob_start_len: int | None = None,
    top_logprobs_num: int | None = None,
    return_text_in_logprobs: bool | None = None,
    dtype: type | str | None = None,
    choices: Sequence[str] | None = None,
    choices_method: ChoicesSamplingMethod | None = None,
    regex: str | re.Pattern[str] | None = None,
    json_schema: Any = None,
    grammar: str | None = None,
    token_healing: bool | None = None,
    ebnf: str | None = None,
) -> Gen | Select:
    """Generate text with the model, append it, and store it as variable `name`.

    Sampling parameters are those of `sgl_mlx.SamplingParams`, where `max_tokens` and `min_tokens`
    are called `max_new_tokens` and `min_new_tokens`. Parameters that are left out come from
    `run()`. A constraint (`dtype`, `regex`, `json_schema`, `grammar`, `ebnf`) replaces the
    constraint of `run()`.

    Args:
        name: the variable; None stores the text in none.
        dtype: a type that the text has to be a value of: int, float, str or bool.
        choices: texts to choose from; with them, this is `select(name, choices, ...)`, which takes
            `choices_method` too and ignores all other parameters but `temperature`.
        json_schema: a dictionary, JSON text or a pydantic model class.
        regex: a regular expression in Python's dialect, as text or compiled.
        token_healing: False keeps the prompt's last token. By default, if the prompt ends in the
            program's own text, a longer token may replace its last token.

    Raises:
        RegexError: (also re.error) for a regex that Python's `re` does not compile.
        InvalidParamsError: for an unknown dtype.
        ProgramError: for an unknown keyword, or a name that is no text; with `choices`, as
            `select`.
    """
    regex = bounds.pattern_text(regex)
    given = {k: v for k, v in locals().items() if v is not None}
    _check_name("gen()", name)
    if choices is not None:
        return select(name, choices, temperature or 0.0, choices_method or token_length_normalized)
    if regex is not None:
        _check_regex(regex)
    if dtype is not None:
        given["dtype"] = _dtype_name(dtype)
        if given.pop("regex", None) is not None:
            warnings.warn("gen() was given dtype and regex; dtype is used", stacklevel=2)
    for unsampled in ("name", "choices_method"):
        given.pop(unsampled, None)
    return Gen(name, {_OWN_NAMES.get(k, k): v for k, v in given.items()})


def _check_name(word: str, name: object) -> None:
    """Raise `ProgramError` unless `name` is a text, None or (in SGLang's programs) an integer."""
    if isinstance(name, str):
        bounds.text(f"the name of {word}", name, ProgramError)
    elif not (name is None or isinstance(name, (int, Symbol))):
        bounds.refuse(f"the name of {word}", name, "a text", ProgramError)


def _check_regex(regex: object) -> None:
    try:
        re.compile(bounds.text("regex", regex))
    except re.error as error:
        raise RegexError("regex", error) from error


def _dtype_name(dtype: type | str) -> str:
    name = _DTYPES.get(dtype) if isinstance(dtype, type) else dtype
    if not isinstance(name, str) or name not in _DTYPES.values():
        bounds.refuse("dtype", dtype, "int, float, str or bool")
    return name


def _typed(dtype: type, word: str) -> Callable[..., Gen]:
    """Return a variant of `gen` for one dtype; it lacks parameters that conflict with a dtype."""
    settled = {"min_tokens", "choices", "choices_method", "token_healing", *CONSTRAINTS}
    signature = inspect.signature(gen)
    kept = [p for p in signature.parameters.values() if p.name not in settled]
    narrowed = signature.replace(parameters=kept, return_annotation=Gen)

    def typed_gen(*args: Any, **kwargs: Any) -> Gen:
        return cast(Gen, gen(**narrowed.bind(*args, **kwargs).arguments, dtype=dtype))

    typed_gen.__name__ = typed_gen.__qualname__ = word
    typed_gen.__doc__ = f"`gen` constrained to one {dtype.__name__}."
    typed_gen.__signature__ = narrowed  # type: ignore[attr-defined]
    return explains_keywords(typed_gen)


gen_int = _typed(int, "gen_int")
gen_string = _typed(str, "gen_string")


@explains_keywords
def select(
    name: str | None = None,
    choices: Sequence[str] | None = None,
    temperature: float = 0.0,
    choices_method: ChoicesSamplingMethod = token_length_normalized,
) -> Select:
    """Append the most likely of the choices, and store it as variable `name`.

    Args:
        name: the variable; None stores the choice in none.
        choices: the texts to choose from.
        temperature: 0; a random choice is not supported.
        choices_method: the way to compare choices; by default, by their mean log-probability per
            token.

    Raises:
        ProgramError: `choices` is empty, or a choice is empty or no text; the temperature is not
            0; the method, or a keyword, is unknown.
    """
    _check_name("select()", name)
    word = f"select({name!r})"
    checked = checked_choices(word, choices, choices_method)
    greedy = bounds.real(0.0 if temperature is None else temperature)
    if greedy is None or greedy > GREEDY_TEMPERATURE:
        raise ProgramError(
            f"{word} takes the likeliest choice; its temperature must be 0, got "
            f"{bounds.shown(temperature)}"
        )
    return Select(name, checked, choices_method, greedy)


def checked_choices(word: str, choices: Any, method: Any) -> tuple[str, ...]:
    """Check choices and method, and return the choices as a tuple.

    Raises:
        ProgramError: there is no choice, a choice is empty or no text, or the method is unknown.
            The message names `word`, the call with the wrong choices.
    """
    found = bounds.listed(choices)
    if not found:
        raise ProgramError(f"{word} needs a list of choices, got {bounds.shown(choices)}")
    texts = tuple(_choice(word, choice) for choice in found)
    if not isinstance(method, ChoicesSamplingMethod):
        raise ProgramError(
            f"unknown choices_method {bounds.shown(method)}; there are token_length_normalized, "
            "greedy_token_selection and unconditional_likelihood_normalized"
        )
    return texts


def _choice(word: str, choice: object) -> str:
    if isinstance(choice, Symbol):
        return cast(str, choice)
    if not isinstance(choice, str) or not choice:
        bounds.refuse(f"choices of {word}", choice, "non-empty texts", ProgramError)
    return bounds.text(f"a choice of {word}", choice, ProgramError)


def image(expr: Any) -> Image:
    """Append an image: `s += image(source)`.

    Args:
        expr: a path, the bytes of a file, a `data:` URL or a PIL image.
    """
    return Image(expr)


@explains_keywords
def video(path: str, num_frames: int) -> Video:
    """Append `num_frames` evenly spaced frames of the video file at `path`.

    Raises:
        InvalidParamsError: `num_frames` is not an integer of at least 1.
    """
    return Video(path, bounds.integer(1, bounds.INT32)("num_frames", num_frames))


def role_turn(role: Role, expr: object = None) -> ExprList:
    """Append a whole turn of a role; without an expression, an empty turn."""
    inner = ExprList() if expr is None else as_expr(expr)
    return ExprList.of(RoleBegin(role), inner, RoleEnd(role))


def system(expr: object = None) -> ExprList:
    """Append a system turn with `expr` as its content: `s += system("...")`."""
    return role_turn("system", expr)


def user(expr: object = None) -> ExprList:
    """Append a user turn with `expr` as its content: `s += user("...")`."""
    return role_turn("user", expr)


def assistant(expr: object = None) -> ExprList:
    """Append an assistant turn with `expr` as its content: `s += assistant(gen("answer"))`."""
    return role_turn("assistant", expr)


def system_begin() -> RoleBegin:
    return RoleBegin("system")


def system_end() -> RoleEnd:
    return RoleEnd("system")


def user_begin() -> RoleBegin:
    return RoleBegin("user")


def user_end() -> RoleEnd:
    return RoleEnd("user")


def assistant_begin() -> RoleBegin:
    return RoleBegin("assistant")


def assistant_end() -> RoleEnd:
    return RoleEnd("assistant")


@explains_keywords
def separate_reasoning(expr: object = None, model_type: str | None = None) -> ExprList:
    """Append an expression; the output of each `gen` in it is split into reasoning and answer.

    The answer is appended to the prompt and stored under the name of the `gen`. The reasoning is
    stored only as variable `<name>_reasoning_content`.

    Args:
        expr: text and `gen`s, as in `s += expr`.
        model_type: "kimi" for Kimi's marks around the reasoning; otherwise the marks are `<think>`
            and `</think>`.
    """

    def separated(node: Expr) -> Expr:
        return SeparateReasoning(node, model_type) if isinstance(node, Gen) else node

    inner = ExprList() if expr is None else as_expr(expr)
    return ExprList(tuple(separated(node) for node in leaves(inner)))
