"""The benchmark of servers: conversations over HTTP, several at a time, on each server in turn.

`trace` makes the conversations, `client` holds them with a server of OpenAI's chat protocol,
`servers` starts the servers, `measure` runs and counts, and `compare` pairs the runs.

`overhead` compares our server with the engine that it serves, by a light client (`load`) and a
server in a thread of the engine's process (`served`).
"""
