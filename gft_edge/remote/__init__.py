"""Another machine over ssh: gft-edge made ready there, files sent by content, commands run.

A command has one ssh connection: the desk sends the program in agent/ to a Python of the device and talks to
it. Only the system's own ssh knows keys, hosts and passwords.
"""

# A command tells its progress as data where this environment variable says "json" (cli/output.py).
PROGRESS_VARIABLE = "GFT_EDGE_PROGRESS"
PROGRESS_MARK = "\x1e"
