"""The Ghost module as a block of nasspace, and PyTorch's channels-last format as a runtime."""
