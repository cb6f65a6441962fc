"""Lines of programs, as errors name them."""

from __future__ import annotations

from sgl_mlx.lang.site import Site, call_site, note_site


def test_the_site_is_the_callers_line() -> None:
    site = call_site()
    assert site.function == "test_the_site_is_the_callers_line"
    assert site.file == __file__
    assert str(site).endswith(f":{site.line}: site = call_site()")


def test_a_line_whose_source_is_gone_is_named_without_it() -> None:
    assert str(Site("f", "<stdin>", 3)) == "in f(), <stdin>:3"


def test_notes_add_up() -> None:
    error = ValueError("boom")
    note_site(error, Site("inner", "<stdin>", 1))
    note_site(error, Site("outer", "<stdin>", 2))
    assert error.__notes__ == ["in inner(), <stdin>:1", "in outer(), <stdin>:2"]
