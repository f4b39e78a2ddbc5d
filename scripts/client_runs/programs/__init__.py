"""Python clients that `scripts/clients` runs, each as a process of its own: client_runs.programs.NAME."""
