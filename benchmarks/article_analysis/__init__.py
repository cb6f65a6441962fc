"""One task written twice: `program` in the language, `http` as plain calls to a server.

From an article about a celebrity both make a biography and an introduction, from any other article
a summary; then they write the sections of a report in parallel. Both send the same prompts and
return the same results, which a test checks. `sgl-mlx bench loc` compares their lengths.
"""
