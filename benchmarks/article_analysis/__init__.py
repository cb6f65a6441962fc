"""One task written twice: `program` in the language, `http` as plain calls to a server.

If an article is about a celebrity, both versions make a biography and an introduction, otherwise a
summary. Then they write the sections of a report in parallel. Both versions send the same prompts
and return the same results, which a test checks. `sgl-mlx bench loc` compares the lengths of the
two versions.
"""
