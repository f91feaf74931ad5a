# sh full_disk.sh PYTHON DEPLOYMENT: run the runtime with its state on a full disk of its own (in a mount namespace).
set -eu
mkdir -p state
mount -t tmpfs -o size=32k tmpfs state
mkdir -p state/test/servers state/test/logs
dd if=/dev/zero of=state/fill bs=4k 2>/dev/null || true
LAUNCH_STATE_DIR="$PWD/state" exec "$1" -c '
import sys
from pathlib import Path
from launcher.errors import LaunchError
from launcher.runtime import run
try:
    run(Path(sys.argv[1]))
except LaunchError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
' "$2"
