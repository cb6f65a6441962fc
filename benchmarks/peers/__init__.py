"""The systems that a workload runs on: our engine, llama.cpp's server, mlx-lm's server.

`system` has the protocol of all of them, `server` starts and ends processes (`tied` to ours),
`completions` is their client.
"""
