#!/bin/sh
# on_cluster.sh PID COMMAND...: run COMMAND with the Python of process PID, Ray's job supervisor,
# first on PATH. A cluster started as `.venv/bin/ray start` has another `python` on PATH, or none,
# and Ray names its own only in the map of its process.
raylet='s|.* \(/.*\)/lib/python[^/]*/site-packages/ray/_raylet\.so$|\1|p'
prefix=$(sed -n "$raylet" "/proc/$1/maps" 2>/dev/null | head -n 1)
shift
[ -n "$prefix" ] && PATH="$prefix/bin:$PATH" && export PATH
exec "$@"
