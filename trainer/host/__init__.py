"""The trainer host: a process that has PyTorch loaded and starts a child process for each run."""
