"""The ground: params, files, errors, signals, locks, the repository."""
