"""What every room uses: params, files, errors, signals, locks, the repository."""
