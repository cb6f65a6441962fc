"""Systems that a workload runs on: our engine, llama.cpp's server, mlx-lm's server.

`system` defines the protocol of a system. `server` starts and ends the servers' processes. `tied`
makes a server end with this process. `completions` is the client of both servers.
"""
