#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`uhmm run` as a user calls it: its options, what the program sees of it, and what it says when it can't."""
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest

BUILD = pathlib.Path(os.environ["UHMM_BUILD_DIR"])
UHMM = BUILD / "tools" / "uhmm"
PYTHON = "/usr/bin/python3"
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("UHMM_") and name != "LD_PRELOAD"}

if not (BUILD / "preload" / "libuhmm_malloc.so").exists():
    print("skipped: built without libuhmm_malloc (libjemalloc-dev)")
    sys.exit(77)


def run(*arguments, env=None, **more):
    return subprocess.run([UHMM, "run", *arguments], capture_output=True, text=True, check=False, timeout=60,
                          env={**CLEAN, **(env or {})}, **more)


def can_migrate():
    return run("--chaos", "1", "--", "true").returncode == 0


class Run(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def test_the_program_is_untouched(self):
        script = "cat; echo out; echo err >&2; exit 7"
        done = run("--", "sh", "-c", script, input="in\n")
        self.assertEqual((done.returncode, done.stdout, done.stderr), (7, "in\nout\n", "err\n"))
        self.assertEqual(run("sh", "-c", "kill -TERM $$").returncode, -signal.SIGTERM)
        self.assertEqual(run("sh", "-c", "kill -SEGV $$").returncode, -signal.SIGSEGV)
        # Nothing of what uhmm opens has a number that a program would get.
        numbers = run(PYTHON, "-c", "import os; a = os.open('/', 0); print(a); os.dup2(a, 9); os.dup2(a, 255)",
                      close_fds=True)
        self.assertEqual((numbers.returncode, numbers.stdout), (0, "3\n"), numbers.stderr)

    def test_what_is_refused(self):
        for arguments, word in (
                (["--chaos", "x"], "--chaos=x"), (["--chaos", "1:"], "--chaos=1:"), (["--chaos", "1:0"], "range"),
                (["--chaos", "1:2:3"], "--chaos"), (["--chaos", "9" * 40], "--chaos"), (["--host-limit", "1"], "range"),
                (["--host-limit", "lots"], "not a number"), (["--host-limit", "-1"], "not a number"),
                (["--min-size", "1Q"], "not a number"), (["--stats=xml"], "neither table nor json"),
                (["--over-budget", "crash"], "neither fail nor exceed"), (["--children", "some"], "neither no nor yes"),
                (["--quiet=very"], "neither no nor yes"), (["--devices", "9"], "UHMM_SOFT_DEVICES"),
                (["--device-memory", "1K"], "UHMM_DEVICE_MEMORY"), (["--device-kind", "gpu"], "UHMM_SOFT_KIND"),
                (["--stats-file", ""], "no value"), (["--config", str(self.folder / "none")], "No such file"),
                (["--dmirror", "--stats"], "no other option")):
            done = run(*arguments, "--", "true")
            self.assertEqual(done.returncode, 125, arguments)
            self.assertIn(word, done.stderr, arguments)
        self.assertNotEqual(run("--nonsense", "--", "true").returncode, 0)
        self.assertEqual(run("--", "/nonexistent").returncode, 127)
        self.assertEqual(run("--", "/").returncode, 126)
        # The same where the library is put ahead by hand.
        done = subprocess.run(["true"], env={**CLEAN, "LD_PRELOAD": str(BUILD / "preload/libuhmm_malloc.so"),
                                             "UHMM_RUN_CHAOS": "x"}, capture_output=True, text=True, check=False)
        self.assertEqual((done.returncode, done.stderr), (125, "uhmm: UHMM_RUN_CHAOS=x is not SEED or SEED:RATE, two "
                                                               "numbers\n"))

    def test_programs_that_nothing_can_be_put_ahead_of(self):
        compiler = shutil.which("gcc") or shutil.which("cc")
        if compiler:
            source = self.folder / "static.c"
            source.write_text("int main(void) { return 3; }\n")
            program = self.folder / "static"
            if subprocess.run([compiler, "-static", source, "-o", program], check=False, capture_output=True).returncode == 0:
                done = run(program)
                self.assertEqual(done.returncode, 126)
                self.assertIn("statically", done.stderr)
        if os.geteuid() == 0:
            program = self.folder / "setuid"
            shutil.copy(shutil.which("true"), program)
            os.chown(program, 65534, 65534)
            program.chmod(0o4755)
            done = run(program)
            self.assertEqual(done.returncode, 126)
            self.assertIn("more rights", done.stderr)

    def stats(self, *arguments, **more):
        done = run("--stats=json", *arguments, **more)
        self.assertEqual(done.returncode, 0, done.stderr)
        return [json.loads(line) for line in done.stderr.splitlines()]

    def test_stats(self):
        told = self.stats("--", PYTHON, "-c", "x = [bytes(1000) for i in range(10000)]")
        self.assertEqual(len(told), 1)
        self.assertEqual(told[0]["program"], "python3")
        self.assertGreater(told[0]["heap"]["areas"], 10_000_000)
        self.assertGreater(told[0]["peak_bytes"], 10_000_000)
        table = run("--stats", "--", "true")
        self.assertIn("in all", table.stderr)
        # Programs that leave by _exit(2); that close standard error; that write into a file together.
        self.assertEqual(len(self.stats("--", PYTHON, "-c", "import os; os._exit(0)")), 1)
        self.assertEqual(len(self.stats("--", PYTHON, "-c", "import os; os.close(2)")), 1)
        log = self.folder / "log"
        done = run("--stats=json", "--stats-file", "log", "--", "sh", "-c", "true; /bin/true; exit 0", cwd=self.folder)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        programs = [json.loads(line)["program"] for line in log.read_text().splitlines()]
        self.assertEqual(programs, ["true", "sh"])

    def test_chaos_moves_pages(self):
        if not can_migrate():
            self.skipTest("faults of system calls are not served here")
        code = "x = [bytes(1000) for i in range(50000)]\nfor i in range(50): assert sum(map(len, x)) == 50000000"
        told = self.stats("--chaos", "1:50000", "--", PYTHON, "-c", code)[0]
        moved = {entry["cause"]: entry for entry in told["moved"]}
        self.assertGreater(moved["explicit migration"]["to_device"], 0)
        self.assertGreater(told["cpu_faults"], 0)

    def test_host_limit(self):
        if not can_migrate():
            self.skipTest("faults of system calls are not served here")
        # Most of its memory goes away while the program waits for that, and is right when it is needed again.
        code = """
def private():
    for line in open('/proc/self/status'):
        if line.startswith('RssAnon'): return int(line.split()[1]) << 10
x = [i.to_bytes(8, 'little') * 500 for i in range(20000)]
while private() > 60 << 20: pass
assert all(part == i.to_bytes(8, 'little') * 500 for i, part in enumerate(x))
"""
        told = self.stats("--host-limit", "32M", "--", PYTHON, "-c", code)[0]
        self.assertEqual(told["host_limit"], 32 << 20)
        self.assertGreater(sum(entry["to_device"] for entry in told["moved"]), 20 << 20 >> 12)
        self.assertEqual(told["refused"], 0)

    def test_over_both_budgets(self):
        if not can_migrate():
            self.skipTest("faults of system calls are not served here")
        code = """
try:
    x = [bytes(1000) for i in range(200000)]
    print(sum(map(len, x)))
except MemoryError:
    print('no memory')
"""
        budgets = ("--host-limit", "16M", "--device-memory", "32M")
        done = run(*budgets, "--", PYTHON, "-c", code)
        self.assertEqual((done.returncode, done.stdout), (0, "no memory\n"), done.stderr)
        self.assertIn("--host-limit, --device-memory", done.stderr)
        quiet = run(*budgets, "--quiet", "--", PYTHON, "-c", code)
        self.assertEqual((quiet.returncode, quiet.stdout, quiet.stderr), (0, "no memory\n", ""))
        done = run(*budgets, "--over-budget", "exceed", "--", PYTHON, "-c", code)
        self.assertEqual((done.returncode, done.stdout), (0, "200000000\n"), done.stderr)

    def test_configuration_file(self):
        config = self.folder / "uhmm.conf"
        config.write_text("# what follows is weaker than the environment\nstats = json\n\nmin-size=4K # bytes\n")
        self.assertEqual(json.loads(run("--config", config, "--", "true").stderr)["program"], "true")
        self.assertIn("in all", run("--config", config, "--", "true", env={"UHMM_RUN_STATS": "table"}).stderr)
        done = run("--config", config, "--stats=json", "--", "true", env={"UHMM_RUN_STATS": "table"})
        self.assertEqual(json.loads(done.stderr)["program"], "true")
        for text, word in (("stats\n", "no '='"), ("\nnonsense = 1\n", ":2: there is no option 'nonsense'"),
                           ("chaos = x\n", "chaos=x"), ("quiet =\n", "no value")):
            config.write_text(text)
            done = run("--config", config, "--", "true")
            self.assertEqual(done.returncode, 125, text)
            self.assertIn(word, done.stderr)

    def test_children(self):
        script = "env | grep -c UHMM_RUN; echo $LD_PRELOAD"
        self.assertIn("libuhmm_malloc.so", run("--stats-file", "/dev/null", "--", "sh", "-c", script).stdout)
        alone = run("--stats-file", "/dev/null", "--children", "no", "--", "sh", "-c", script)
        self.assertEqual(alone.stdout, "0\n\n")
        kept = run("--children", "no", "--", "sh", "-c", "echo $LD_PRELOAD", env={"LD_PRELOAD": "libc.so.6"})
        self.assertEqual(kept.stdout, "libc.so.6\n")

    def test_maps(self):
        program = subprocess.Popen([UHMM, "run", "--", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=CLEAN)
        self.addCleanup(program.communicate)
        program.stdin.write(b"x")
        program.stdin.flush()
        program.stdout.read(1)
        told = json.loads(subprocess.run([UHMM, "maps", "--json", str(program.pid)], check=True, capture_output=True).stdout)
        self.assertGreaterEqual(len(told["ranges"]), 1)

    @unittest.skipUnless(os.geteuid() == 0, "needs root, to give it up")
    def test_without_privilege(self):
        def as_nobody(*arguments):
            return run(*arguments, user=65534, group=65534, extra_groups=[], cwd="/")
        plain = as_nobody("--", "echo", "hi")
        self.assertEqual((plain.returncode, plain.stdout), (0, "hi\n"))
        done = as_nobody("--chaos", "1", "--", "echo", "hi")
        allowed = pathlib.Path("/proc/sys/vm/unprivileged_userfaultfd").read_text().strip() != "0" \
            or os.access("/dev/userfaultfd", os.R_OK) and os.stat("/dev/userfaultfd").st_mode & 0o006
        self.assertEqual(done.returncode, 0 if allowed else 125, done.stderr)
        if not allowed:
            self.assertIn("uhmm doctor", done.stderr)
            # A program that gives its rights up on the way runs on, and says so.
            code = "import os; os.setuid(65534); os.execvp('echo', ['echo', 'hi'])"
            warned = run("--chaos", "1", "--", PYTHON, "-c", code)
            self.assertEqual((warned.returncode, warned.stdout), (0, "hi\n"))
            self.assertIn("stays in system memory", warned.stderr)
            self.assertEqual(run("--quiet", "--chaos", "1", "--", PYTHON, "-c", code).stderr, "")


if __name__ == "__main__":
    result = unittest.main(exit=False).result
    sys.exit(1 if not result.wasSuccessful() else 77 if result.skipped else 0)
