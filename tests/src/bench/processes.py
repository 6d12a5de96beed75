"""So many processes that wait: children that share memory with this one, or with `sleep` as a second argument programs of their own.
USR1 ends it; the exit code says whether all of them are there."""
import os, signal, sys
children = []
for _ in range(int(sys.argv[1])):
    child = os.fork()
    if child == 0:
        if len(sys.argv) > 2:
            os.execvp(sys.argv[2], [sys.argv[2], '100000'])
        while True:
            signal.pause()
    children.append(child)
def end(*_):
    codes = []
    for child in children:
        os.kill(child, signal.SIGTERM)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    os._exit(0 if codes == [-signal.SIGTERM] * len(children) else 1)
signal.signal(signal.SIGUSR1, end)
print('ready', flush=True)
while True:
    signal.pause()
