"""The live page: one HTML file without a build step, which sends requests to this server only."""
