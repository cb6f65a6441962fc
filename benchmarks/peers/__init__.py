"""The systems that a workload runs on: our engine, llama.cpp's server, mlx-lm's server.

`system` says what all of them offer; `server` starts and ends processes; `http` talks to them.
"""
