"""The operators' functions: pure, differentiable, one file per kind. The registry imports the files when asked."""
