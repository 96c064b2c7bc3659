"""The commands of ``purify``: one file each, with its options as a dataclass and the function that runs it."""
