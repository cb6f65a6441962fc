"""Analysis of an article as a program of the language: `analyse.run(article).ret_value`."""

from __future__ import annotations

from typing import Any

import sgl_mlx as sgl

BIOGRAPHY = {"name": str, "occupation": str, "birth year": int, "number of awards": int}
SECTIONS = 4


@sgl.function
def analyse(s: Any, article: str) -> dict[str, Any]:
    s += f"Article:\n{article}\n\nIs the article about a celebrity?"
    s += sgl.select("celebrity", choices=[" yes", " no"]) + "\n"
    found: dict[str, Any] = {"celebrity": s["celebrity"] == " yes"}
    if found["celebrity"]:
        s += "Biography:\n"
        for field, kind in BIOGRAPHY.items():
            s += f"{field}: " + sgl.gen(field, max_tokens=24, dtype=kind) + "\n"
        values = {field: kind(s[field].strip('"')) for field, kind in BIOGRAPHY.items()}
        found["biography"] = values
        s += "Introduction:"
    else:
        s += "Summary:"
    s += sgl.gen("opening", max_tokens=160, stop="\n") + "\n"
    s += f"Titles of the {SECTIONS} sections of a report:\n"
    for number in range(1, SECTIONS + 1):
        s += f"{number}." + sgl.gen(f"title {number}", max_tokens=16, stop="\n") + "\n"
    titles = [s[f"title {number}"] for number in range(1, SECTIONS + 1)]
    sections = s.fork(SECTIONS)
    sections += [f"Section{title}:\n" + sgl.gen("text", max_tokens=256) for title in titles]
    sections.join()
    report = [f"#{title}\n{text}\n" for title, text in zip(titles, s["text"], strict=True)]
    return found | {"opening": s["opening"], "report": "\n".join(report)}
