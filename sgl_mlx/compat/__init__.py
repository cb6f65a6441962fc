"""Module names, helpers and classes of SGLang, for programs written for SGLang."""
