"""Types at a pseudo-terminal: BINARY as argv[1]. Ctrl-C under it. Prints what it saw; exits 0 if all is well."""
import os, pty, select, sys, time

binary = sys.argv[1]


def session(command, typed):
    """Runs command on a terminal; `typed` is (text to wait for, bytes to type) in order. Status and output."""
    pid, fd = pty.fork()
    if pid == 0:
        os.execv(command[0], command)
    seen, at, deadline = b"", 0, time.time() + 30
    while time.time() < deadline:
        ready, _, _ = select.select([fd], [], [], 0.1)
        if ready:
            try:
                data = os.read(fd, 4096)
            except OSError:
                break
            if not data:
                break
            seen += data
        if typed and typed[0][0] in seen[at:]:
            at = seen.index(typed[0][0], at) + len(typed[0][0])
            os.write(fd, typed.pop(0)[1])
    else:
        os.kill(pid, 9)
    status = os.waitpid(pid, 0)[1]
    return os.waitstatus_to_exitcode(status), seen.decode(errors="replace")


code, seen = session([binary, "--audit-level", "basic", "--", "sh", "-c", "echo ready; sleep 100"], [(b"ready", b"\x03")])
print(seen)
assert code == 130, code
