"""One task written twice: `program` in the language, `http` as plain calls to a server.

An article about a celebrity is turned into a biography with an introduction, any other into a
summary; then a report of several sections is written side by side. Both files ask the same and
return the same, as a test shows, so that `sgl-mlx bench loc` may compare their lengths.
"""
