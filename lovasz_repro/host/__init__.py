"""The machine that a process runs on: files, processes, device, downloads, the screen."""
