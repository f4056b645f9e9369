"""The subcommands of objfs, one module per topic; objfs/cli.py says what each accepts.

Each function takes the parsed arguments and returns the exit code. What fails is raised:
CommandFailed or a StoreError, whose text is the one line the person reads.
"""
