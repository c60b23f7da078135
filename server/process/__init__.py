"""What every process of the server uses: the operating system, threads and tasks, a progress display."""
