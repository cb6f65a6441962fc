"""Tokenizer files with values that are not what their names say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sgl_mlx.errors import TokenizerError
from sgl_mlx.tokenizer import Tokenizer
from tests.tokenizer.test_tokenizer import write_folder


@pytest.mark.parametrize("value", ["2", [1, "2"], 2.0, True, [[1]], {"a": 1}])
def test_an_end_token_that_is_no_id_is_refused_by_name(tmp_path: Path, value: Any) -> None:
    write_folder(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(TokenizerError, match=r"generation_config\.json: eos_token_id must be"):
        Tokenizer.from_file(tmp_path)


@pytest.mark.parametrize("value", [-1, [-1], None, []])
def test_no_end_token_is_written_in_several_ways(tmp_path: Path, value: Any) -> None:
    write_folder(tmp_path)
    before = Tokenizer.from_file(tmp_path).eos_token_ids
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    assert Tokenizer.from_file(tmp_path).eos_token_ids == before


@pytest.mark.parametrize("decoder", [{"a": {"content": "<x>"}}, [1], "x"])
def test_added_tokens_under_keys_that_are_no_ids_are_refused(tmp_path: Path, decoder: Any) -> None:
    write_folder(tmp_path, tokenizer_config={"added_tokens_decoder": decoder})
    with pytest.raises(TokenizerError, match="added_tokens_decoder must map token ids"):
        Tokenizer.from_file(tmp_path)


def test_a_byte_order_mark_before_a_configuration_is_no_error(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_bytes(b"\xef\xbb\xbf" + b'{"chat_template": "a"}')
    assert Tokenizer.from_file(tmp_path).chat_template == "a"
