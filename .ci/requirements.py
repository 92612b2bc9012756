"""Prints what setup.cfg asks for, one a line: the supervisor's own and the named extras'."""

import configparser
import sys

setup = configparser.ConfigParser(interpolation=None)
setup.read("setup.cfg")
extras = setup["options.extras_require"]
lines = [setup["options"]["install_requires"], *(extras[name] for name in sys.argv[1:])]
own = setup["metadata"]["name"]
for line in "\n".join(lines).split():
    if not line.startswith(own):
        print(line)
