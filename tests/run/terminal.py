"""Types at a pseudo-terminal: BINARY as argv[1]. Ctrl-C under it, and Ctrl-Z and fg under a shell. Prints what it saw; exits 0 if all is well."""
import os
import pty
import select
import signal
import sys
import tempfile
import time

binary = sys.argv[1]


def session(command, typed):
    """Runs command on a terminal; `typed` is (text to wait for, bytes to type) in order. Status and output."""
    pid, fd = pty.fork()
    if pid == 0:
        # Whoever started the tests in the background left these ignored, which bash would keep.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)
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


def at_a_prompt(typed):
    """The same of an interactive shell."""
    return session(["/bin/bash", "--norc", "--noprofile", "-i"], typed)


# The workload waits in the shell's own `read`: a shell that waits for a child loses a Ctrl-C typed between its fork and the
# child's exec, with or without a supervisor, so that would test the shell.
waiting = "echo re''ady; read line; echo do''ne; exit 3"
code, seen = session([binary, "--audit-level", "basic", "--", "sh", "-c", waiting], [(b"ready", b"\x03")])
print(seen)
assert code == 130, code

inner = f'PS1="prom""pt "; {binary} --audit-level basic -- sh -c "{waiting}" 2>/dev/null\n'.encode()
code, seen = at_a_prompt(
    [
        (b"-5.", inner),
        (b"ready", b"\x1a"),
        (b"Stopped", b""),
        (b"prompt ", b"fg\n"),
        (b"echo do", b"go\n"),
        (b"done", b""),
        (b"prompt ", b"echo rc=$?\n"),
        (b"rc=3", b"exit\n"),
    ],
)
print(seen)
assert "Stopped" in seen and "rc=3" in seen, "job control"

# Started with `&` it gets nothing of what is typed at the shell's prompt.
with tempfile.TemporaryDirectory() as directory:
    stolen = os.path.join(directory, "stolen")
    inner = f'PS1="prom""pt "; {binary} --audit-level basic -- sh -c "echo re""ady >&2; cat > {stolen}; sleep 2" 2>&1 &\n'.encode()
    code, seen = at_a_prompt(
        [
            (b"-5.", inner),
            (b"\nready", b"echo typed-$((1+1))\n"),
            (b"typed-2", b"echo typed-$((2+2))\n"),
            (b"typed-4", b"kill %1; wait; exit 5\n"),
        ],
    )
    print(seen)
    assert code == 5, code
    assert os.stat(stolen).st_size == 0, open(stolen, "rb").read()
