"""What supervisor and workers say to each other. Knows nobody: stdlib and msgpack alone.

Runs on Python 3.10 and later, because a backend's environment may need an older interpreter
than the supervisor.
"""

__version__ = "0.1.0"

#: Version of the wire, (major, minor). Equal majors are required at hello.
WIRE_VERSION = (1, 1)
