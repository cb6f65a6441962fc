"""Metal kernels of the runtime. None yet: attention runs on the reference path."""
