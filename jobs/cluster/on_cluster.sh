#!/bin/sh
# on_cluster.sh PID COMMAND...: run COMMAND with the Python that process PID, Ray's job supervisor, runs on first on PATH.
# A cluster started as `.venv/bin/ray start` has another `python` on PATH, or none; Ray names its own nowhere but here.
prefix=$(sed -n 's|.* \(/.*\)/lib/python[^/]*/site-packages/ray/_raylet\.so$|\1|p' "/proc/$1/maps" 2>/dev/null | head -n 1)
shift
[ -n "$prefix" ] && PATH="$prefix/bin:$PATH" && export PATH
exec "$@"
