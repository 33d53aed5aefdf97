"""The ``irg`` command. Every subcommand is a module with ``main(argv) -> exit code`` that imports torch late."""
