"""What stands behind each ``irg`` subcommand. Every module has ``main(argv) -> exit code`` and imports torch late."""
