#!/usr/bin/env python3
"""Runs every test of the workspace, and says at the end what failed and why.

Most of these tests start processes, databases and networks on two cores. One or two that fail are
run once more, alone: a test that then passes is reported as FLAKY with its first failure, for
whoever owns that bug; one that fails twice, or a third, fails the run. STRICT=1 runs nothing twice.
"""

import os
import re
import subprocess
import sys

# More than these at once are no accident.
MOST = 2
# Of each failure, at the end.
LINES = 12

COMMAND = ["cargo", "test", "--workspace", "--no-fail-fast"]


class Failures:
    """What a run's output says failed."""

    def __init__(self):
        self.pending = []
        # (arguments for cargo, test)
        self.found = []
        # Counted by the harness itself.
        self.counted = 0
        # Doc tests, crashes: nothing that can be run again alone.
        self.others = []
        self.causes = {}
        self.current = None

    def read(self, line):
        text = line.rstrip("\n")
        if found := re.match(r"test (.+?)(?: - should panic)? \.\.\. FAILED$", text):
            self.pending.append(found[1])
        elif found := re.match(r"test result: FAILED\. \d+ passed; (\d+) failed", text):
            self.counted += int(found[1])
            self.current = None
        elif found := re.match(r"error: (?:test|doctest) failed, to rerun pass `(.+)`$", text):
            if "--doc" in found[1] or not self.pending:
                self.others.append(found[1])
            else:
                self.found += [(found[1], name) for name in self.pending]
            self.pending = []
        elif found := re.match(r"---- (.+) stdout ----$", text):
            self.current = found[1]
            self.causes[self.current] = []
        elif text == "failures:":
            self.current = None
        elif self.current and text.strip() and len(self.causes[self.current]) < LINES:
            self.causes[self.current].append(text)

    def cause(self, name):
        return "\n".join(self.causes.get(name, ["(it said nothing)"]))


def run(command, read):
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    for line in child.stdout:
        sys.stdout.write(line)
        sys.stdout.flush()
        read(line)
    return child.wait()


def passes_alone(arguments, name):
    # The whole workspace, so that nothing is built with other features.
    where = re.sub(r"-p \S+\s*", "", arguments).split()
    command = ["cargo", "test", "--workspace", *where, "--", "--exact", name]
    passed = []
    code = run(command, lambda line: passed.append(line) if line == f"test {name} ... ok\n" else None)
    return code == 0 and len(passed) > 0


def main():
    failures = Failures()
    code = run(COMMAND, failures.read)
    if code == 0:
        return 0
    print("\n== what failed")
    for arguments, name in failures.found:
        print(f"\n-- {name} ({arguments})\n{failures.cause(name)}")
    for other in failures.others:
        print(f"\n-- {other}: see above")
    sys.stdout.flush()
    one_by_one = (
        not failures.others
        and not failures.pending
        and 0 < len(failures.found) <= MOST
        and len(failures.found) == failures.counted
    )
    if not one_by_one or os.environ.get("STRICT"):
        return code
    for arguments, name in failures.found:
        print(f"\n== once more, alone: {name}", flush=True)
        if not passes_alone(arguments, name):
            print(f"\nfailed twice: {name}")
            return code
    for _, name in failures.found:
        print(f"\nFLAKY, passed alone after a failure, a bug of its own: {name}\n{failures.cause(name)}")
    sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
