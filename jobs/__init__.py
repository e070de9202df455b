"""The verbs of the command line, one file each; `cli` gathers them as the command `loraforge`."""
