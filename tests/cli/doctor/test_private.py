"""No name of a user or host, and no folder, is left in a text, whatever they are."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sgl_mlx.cli.doctor.private import HOST, USER, Private

WORD = st.text(string.ascii_letters + string.digits + "-_äß", min_size=2, max_size=12).filter(
    lambda word: (
        word[0].isalnum() and word[-1].isalnum() and word.casefold() not in ("user", "host")
    )
)
PLACES = (
    "{home}/models/x.gguf",
    "no file '{home}/.cache/huggingface/hub/x'",
    "{home}",
    "log in as {user}@{host}.local",
    'File "/var/folders/zz/{user}/T/k.metal", line 3',
    "/private{home}/x: error",
    "/Volumes/{user}/models/x",
    "{user}'s Mac ({host})",
    "~/work/{user}/x",
)


@given(user=WORD, host=WORD, template=st.sampled_from(PLACES))
def test_names_and_folders_are_taken_out(user: str, host: str, template: str) -> None:
    assume(user.casefold() not in template.format(home="/Users/", user="", host="").casefold())
    home = f"/Users/{user}"
    private = Private((user,), (f"{host}.local", host), (f"/private{home}", home))
    cleaned = private.remove(template.format(home=home, user=user, host=host))
    words = {word.casefold() for word in re.findall(r"[\w-]+", cleaned)}
    left = {user.casefold(), host.casefold()} & words
    assert not left - {"x", "models", "error"}, cleaned
    assert "/Users" not in cleaned
    assert "/var/folders" not in cleaned
    assert "/Volumes" not in cleaned
    assert private.remove(cleaned) == cleaned


def test_a_known_path_is_taken_out_whole_though_it_holds_spaces() -> None:
    private = Private(("jane",), (), ("/Users/jane",))
    path = "/Users/jane/Client Of Mine/model.gguf"
    assert private.remove(f"cannot read {path}: broken", [path]) == (
        "cannot read …/model.gguf: broken"
    )


@pytest.mark.parametrize(
    "text",
    [
        "prefill 512: 1,234.5 tok/s",
        "mlx-community/Llama-3.2-3B-Instruct-4bit",
        "https://huggingface.co/org/name",
        "3 / 4 of them",
        "macOS-15.1-arm64-arm-64bit",
    ],
)
def test_the_rest_stays_as_it_is(text: str) -> None:
    assert Private(("jane", "Jane Doe"), ("janes-mac",), ("/Users/jane",)).remove(text) == text


def test_whole_words_alone_are_names() -> None:
    private = Private(("an",), ("mac",), ())
    assert private.remove("an plan on mac and macOS") == f"{USER} plan on {HOST} and macOS"
