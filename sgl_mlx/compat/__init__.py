"""SGLang's module names, helpers and `Runtime`, for programs written for SGLang."""
