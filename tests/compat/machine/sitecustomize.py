"""The machine as an original agent sees it here: Python reads this file before the agent's first line.

The agent is unmodified, and it may write its log to /var/log, install packages, replace its own program, open a
terminal and reboot. Here its two files outside HOME are kept in the test's folder, and whatever else it tries outside
that folder or beyond loopback fails and is written down for the test to see.
"""

import builtins
import os
import sys

ROOT = os.environ["COMPAT_ROOT"]
MOVED = {"/var/log/microservicebus-py.log": f"{ROOT}/agent.log", "/tmp/msb.pid": f"{ROOT}/msb.pid"}
HOSTS = ("127.0.0.1", "::1", "localhost", b"127.0.0.1", b"localhost", None)
# Looking for WireGuard and asking for the processor's name; with this PATH the first finds nothing.
COMMANDS = ("wg --help", ["/bin/sh", "-c", "wg --help"], ["uname", "-p"])
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

_open = builtins.open


def _open_moved(file, *arguments, **named):
    return _open(MOVED.get(file, file) if isinstance(file, str) else file, *arguments, **named)


def _inside(path):
    path = os.path.abspath(os.fsdecode(path))  # noqa: PTH100 (an audit hook does as little as it can)
    return path == "/dev/null" or path.startswith(ROOT + "/")


def _allowed(event, arguments):
    match event:
        case "open":
            path, _, flags = arguments
            return isinstance(path, int) or not (flags or 0) & _WRITING or _inside(path)
        case "os.mkdir" | "os.rmdir" | "os.remove" | "os.truncate" | "os.chmod" | "shutil.rmtree":
            return _inside(arguments[0])
        case "os.rename" | "os.link" | "os.symlink":
            return _inside(arguments[0]) and _inside(arguments[1])
        case "socket.connect" | "socket.sendto":
            address = arguments[1]
            return not isinstance(address, tuple) or address[0] in HOSTS
        case "socket.getaddrinfo":
            return arguments[0] in HOSTS
        case "subprocess.Popen":
            return arguments[1] in COMMANDS
        case "os.exec":
            return arguments[0] == sys.executable
        case "os.system" | "os.posix_spawn" | "os.spawn" | "os.fork" | "os.forkpty" | "pty.spawn":
            return False
        case _:
            return True


def _watch(event, arguments):
    if _allowed(event, arguments):
        return
    line = f"{event} {arguments!r}\n".encode()
    descriptor = os.open(f"{ROOT}/refused.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, line)
    os.close(descriptor)
    raise PermissionError(f"the test does not allow {event} {arguments!r}")


builtins.open = _open_moved
sys.addaudithook(_watch)
