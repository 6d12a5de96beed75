import ctypes, fcntl, mmap, os, pty, resource, select, signal, socket, struct, sys, threading, time

checks = {}          # what -> a function that is true when it is as it was
libc = ctypes.CDLL(None, use_errno=True)
# As the pid of a child that waits, one that is stopped, one that has ended and was not waited for.
def child(work):
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid
def state(pid):
    return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0]

# Memory that processes share.
shared = mmap.mmap(-1, 4096)
go, wait = os.pipe()[::-1]
def answer():
    os.setsid()
    while os.read(wait, 1):
        shared[0:5] = b"heard"
listener = child(answer)
def asks():
    os.write(go, b"?")
    end = time.monotonic() + 5
    while shared[0:5] != b"heard" and time.monotonic() < end:
        time.sleep(0.01)
    return shared[0:5] == b"heard" and os.getsid(listener) == listener
checks["shared memory with a process in a session of its own"] = asks

stopped = child(signal.pause)
os.kill(stopped, signal.SIGSTOP)
os.waitpid(stopped, os.WUNTRACED)
checks["a stopped process"] = lambda: state(stopped) == "T"
zombie = child(lambda: None)
os.waitid(os.P_PID, zombie, os.WEXITED | os.WNOWAIT)
checks["a zombie"] = lambda: state(zombie) == "Z" and os.waitpid(zombie, 0) == (zombie, 0)

# Threads, and a lock that one of them holds.
lock, release = threading.Lock(), threading.Event()
def hold():
    with lock:
        release.wait()
holder = threading.Thread(target=hold)
holder.start()
def freed():
    held = not lock.acquire(timeout=0.1)
    release.set()
    return held and lock.acquire(timeout=5)
checks["a lock between threads"] = freed

# What is on its way inside of kernel objects.
reader, writer = os.pipe()
os.write(writer, b"in the pipe")
checks["data in a pipe"] = lambda: os.read(reader, 99) == b"in the pipe"
os.mkfifo("/fifo")
fifo = os.open("/fifo", os.O_RDWR)
os.write(fifo, b"in the fifo")
checks["data in a fifo"] = lambda: os.read(fifo, 99) == b"in the fifo"
left, right = socket.socketpair()
left.sendall(b"in the socket")
checks["data in a unix stream"] = lambda: right.recv(99) == b"in the socket"
ping, pong = socket.socketpair(type=socket.SOCK_DGRAM)
for text in [b"one", b"two"]:
    ping.send(text)
checks["messages in a unix socket"] = lambda: (pong.recv(99), pong.recv(99)) == (b"one", b"two")
named = socket.socket(socket.AF_UNIX)
named.bind("/named")
named.listen()
def connects():
    with socket.socket(socket.AF_UNIX) as other:
        other.connect("/named")
        return named.accept()[0] is not None
checks["a unix listener with a name"] = connects
server = socket.create_server(("127.0.0.1", 5000))
near = socket.create_connection(("127.0.0.1", 5000))
far = server.accept()[0]
near.sendall(b"over the loopback")
checks["a connection over the loopback"] = lambda: far.recv(99) == b"over the loopback"
udp = socket.socket(type=socket.SOCK_DGRAM)
udp.bind(("127.0.0.1", 5001))
checks["a bound udp socket"] = lambda: udp.sendto(b"x", ("127.0.0.1", 5001)) == 1 and udp.recv(9) == b"x"
half, other = socket.socketpair()
half.sendall(b"last words")
half.shutdown(socket.SHUT_WR)
checks["a connection closed on one side"] = lambda: (other.recv(99), other.recv(99)) == (b"last words", b"")
master, slave = pty.openpty()
os.write(master, b"typed\n")
fcntl.ioctl(slave, 0x5414, struct.pack("HHHH", 33, 77, 0, 0))            # TIOCSWINSZ
def terminal():
    size = struct.unpack("HHHH", fcntl.ioctl(master, 0x5413, b"\0" * 8))  # TIOCGWINSZ
    os.write(master, b"more\n")
    text = os.read(slave, 99)
    return size[:2] == (33, 77) and text in (b"typed\n", b"more\n")
checks["a terminal of its own"] = terminal

# Things to wait with.
counter = os.eventfd(5)
poll = select.epoll()
poll.register(counter, select.EPOLLIN)
checks["an epoll"] = lambda: [fd for fd, _ in poll.poll(1)] == [counter]
checks["an eventfd"] = lambda: os.eventfd_read(counter) == 5
timer = os.timerfd_create(time.CLOCK_MONOTONIC)
os.timerfd_settime(timer, initial=3600, interval=7)
checks["a timerfd"] = lambda: 3000 < os.timerfd_gettime(timer)[0] < 3600 and os.timerfd_gettime(timer)[1] == 7
signal.setitimer(signal.ITIMER_REAL, 3600, 9)
checks["an interval timer"] = lambda: 3000 < signal.getitimer(signal.ITIMER_REAL)[0] < 3600
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR2)
checks["a pending signal"] = lambda: signal.SIGUSR2 in signal.sigpending()
watch = libc.inotify_init1(0)
libc.inotify_add_watch(watch, b"/root", 0x100)                            # IN_CREATE
def notices():
    open("/root/created", "w").close()
    return bool(select.select([watch], [], [], 5)[0])
checks["an inotify watch"] = notices

# Files.
opened = open("/opened", "w+b")
opened.write(b"0123456789")
opened.seek(4)
checks["the place in a file"] = lambda: opened.tell() == 4 and opened.read(2) == b"45"
append = os.open("/opened", os.O_WRONLY | os.O_APPEND)
checks["the flags of a file"] = lambda: fcntl.fcntl(append, fcntl.F_GETFL) & os.O_APPEND
copy = os.dup(append)
checks["two descriptors of one open file"] = lambda: os.lseek(copy, 3, 0) == 3 == os.lseek(append, 0, 1)
def taken(how):
    def attempt():
        descriptor = os.open("/locked", os.O_RDWR)
        try:
            how(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os._exit(1)
        except OSError:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child(attempt), 0)[1]) == 0
locked = os.open("/locked", os.O_RDWR | os.O_CREAT)
fcntl.flock(locked, fcntl.LOCK_EX)
checks["a lock on a file (flock)"] = lambda: taken(fcntl.flock)
ranges = os.open("/locked", os.O_RDWR)
fcntl.lockf(ranges, fcntl.LOCK_EX)
checks["a lock on a file (fcntl)"] = lambda: taken(fcntl.lockf)
with open("/mapped", "wb") as file:
    file.write(b"." * 8192)
with open("/mapped", "r+b") as file:
    together, alone = mmap.mmap(file.fileno(), 8192), mmap.mmap(file.fileno(), 8192, access=mmap.ACCESS_COPY)
together[0:4] = b"both"
alone[4096:4100] = b"mine"
checks["a shared mapping of a file"] = lambda: together[0:4] == b"both" and open("/mapped", "rb").read(4) == b"both"
checks["a private mapping of a file"] = lambda: alone[4096:4100] == b"mine" and open("/mapped", "rb").read()[4096:] == b"." * 4096
memory = os.memfd_create("memory")
os.write(memory, b"nameless")
checks["a memfd"] = lambda: os.pread(memory, 99, 0) == b"nameless"
with open("/dev/shm/segment", "w") as file:
    file.write("posix")
checks["a file in /dev/shm"] = lambda: open("/dev/shm/segment").read() == "posix"
with open("/scratch/file", "w") as file:
    file.write("tmpfs")
checks["a file in a tmpfs"] = lambda: open("/scratch/file").read() == "tmpfs"
libc.shmat.restype = ctypes.c_void_p
segment = libc.shmget(1234, 4096, 0o1600)
address = libc.shmat(segment, None, 0)
ctypes.memmove(address, b"system five", 11)
checks["System V shared memory"] = lambda: ctypes.string_at(address, 11) == b"system five" and libc.shmget(1234, 0, 0) >= 0
semaphore = libc.semget(77, 1, 0o1600)
libc.semctl(semaphore, 0, 16, 42)                                         # SETVAL
checks["a System V semaphore"] = lambda: libc.semctl(libc.semget(77, 0, 0), 0, 12) == 42
queue = libc.msgget(99, 0o1600)
libc.msgsnd(queue, struct.pack("l", 3) + b"letter", 6, 0)
def letter():
    text = ctypes.create_string_buffer(99)
    return libc.msgrcv(queue, text, 80, 0, 0) == 6 and text.raw[8:14] == b"letter"
checks["a System V message"] = letter

# The process itself.
os.chdir("/root")
os.umask(0o027)
os.nice(3)
resource.setrlimit(resource.RLIMIT_CORE, (4096, 8192))
libc.prctl(15, b"zookeeper", 0, 0, 0)
os.environ["LATE"] = "yes"
random_bytes = os.urandom(4_000_000)
total = sum(random_bytes)
checks["directory, umask, priority, limits and name"] = lambda: (
    os.getcwd(), os.umask(0o027), os.nice(0), resource.getrlimit(resource.RLIMIT_CORE), open("/proc/self/comm").read()
) == ("/root", 0o027, 3, (4096, 8192), "zookeeper\n")
checks["memory"] = lambda: sum(random_bytes) == total
clock = time.monotonic()
checks["the clock"] = lambda: 0 < time.monotonic() - clock < 600

signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
print("ready", flush=True)
signal.sigwait([signal.SIGUSR1])
wrong = []
for what, check in checks.items():
    try:
        if not check():
            wrong.append(what)
    except Exception as error:
        wrong.append(f"{what}: {error!r}")
for pid in [listener, stopped]:
    os.kill(pid, signal.SIGKILL)
print(f"{len(checks)} checks, wrong: {wrong}", flush=True)
os._exit(1 if wrong else 0)
