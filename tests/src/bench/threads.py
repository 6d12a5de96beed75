"""So many threads that wait. USR1 ends it; the exit code says whether all of them are there."""
import signal, sys, threading
count = int(sys.argv[1])
threading.stack_size(256 << 10)
go, left = threading.Event(), threading.Semaphore(0)
def wait():
    go.wait()
    left.release()
for _ in range(count):
    threading.Thread(target=wait, daemon=True).start()
def end(*_):
    go.set()
    alive = sum(left.acquire(timeout=10) for _ in range(count))
    sys.exit(0 if alive == count else 1)
signal.signal(signal.SIGUSR1, end)
print('ready', flush=True)
while True:
    signal.pause()
