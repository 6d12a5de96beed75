# A tree of processes with memory of every kind, written to all the time. USR1 lets each of them compare all of it with what it must be;
# the exit code says whether it is.
import ctypes, mmap, os, signal, sys, threading, time

PAGE = 4096
MIB = 1 << 20
libc = ctypes.CDLL(None, use_errno=True)


def address(area):
    return ctypes.addressof(ctypes.c_char.from_buffer(area))


def word(page, seed, count):
    return ((page * 2654435761 + seed * 97 + count) & (2**64 - 1)).to_bytes(8, "little")


class Area:
    """Pages whose first eight bytes are known: by page, seed, and how often they were written."""

    def __init__(self, name, memory, seed, step=1):
        self.name, self.memory, self.seed, self.step = name, memory, seed, step
        self.pages = len(memory) // PAGE
        self.counts = {}
        for page in range(0, self.pages, step):
            self.write(page, 0)

    def write(self, page, count):
        self.memory[page * PAGE:page * PAGE + 8] = word(page, self.seed, count)
        self.counts[page] = count

    def touch(self, turn):
        page = turn * 7919 % self.pages // self.step * self.step
        self.write(page, self.counts.get(page, 0) + 1)

    def wrong(self):
        zero = bytes(8)
        for page in range(self.pages):
            want = word(page, self.seed, self.counts[page]) if page in self.counts else zero
            have = bytes(self.memory[page * PAGE:page * PAGE + 8])
            if have != want:
                return f"{self.name} page {page}: {have.hex()} instead of {want.hex()}"
            if any(self.memory[page * PAGE + 8:page * PAGE + 16]):
                return f"{self.name} page {page}: bytes from nowhere"
        return None


class Fleeting(Area):
    """Every second time that a page is touched it is given back, and is zeros from then on."""

    def touch(self, turn):
        page = turn * 7919 % self.pages
        if page in self.counts:
            self.memory.madvise(mmap.MADV_DONTNEED, page * PAGE, PAGE)
            del self.counts[page]
        else:
            self.write(page, turn)


def protect(area, rights):
    if libc.mprotect(ctypes.c_void_p(address(area.memory)), ctypes.c_size_t(len(area.memory)), rights):
        raise OSError(ctypes.get_errno(), "mprotect")


def private(size):
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def areas(seed):
    with open(f"/file{seed}", "wb") as file:
        file.truncate(2 * MIB)
    mapped = os.open(f"/file{seed}", os.O_RDWR)
    memfd = os.memfd_create("memory")
    os.ftruncate(memfd, 4 * MIB)
    grown = private(4 * MIB)
    made = [
        Area("heap", bytearray(24 * MIB), seed),
        Area("private", private(16 * MIB), seed + 1),
        Area("sparse", private(256 * MIB), seed + 2, step=64),
        Area("shared", mmap.mmap(-1, 4 * MIB), seed + 3),
        Area("memfd", mmap.mmap(memfd, 4 * MIB), seed + 4),
        Area("private file", mmap.mmap(mapped, 2 * MIB, flags=mmap.MAP_PRIVATE), seed + 5, step=2),
        Area("locked", private(32 * 1024), seed + 6),
        Area("closed", private(MIB), seed + 7),
        Area("grown", grown, seed + 8),
        Fleeting("fleeting", private(16 * MIB), seed + 9),
    ]
    if libc.mlock(ctypes.c_void_p(address(made[6].memory)), ctypes.c_size_t(32 * 1024)):
        raise OSError(ctypes.get_errno(), "mlock")
    protect(made[7], 0)
    return made


def live(seed, inherited):
    made = areas(seed)
    own = [area for area in made if area.name != "closed"] + inherited
    asked, stopped = threading.Event(), threading.Event()
    signal.signal(signal.SIGUSR1, lambda *_: asked.set())

    def write():
        turn, passing = 0, None
        while not asked.is_set():
            for area in own:
                area.touch(turn)
            # Memory that comes and goes, at the same addresses as often as not.
            scratch = private(MIB)
            scratch[turn % 256 * PAGE] = 1
            scratch.close()
            turn += 1
            if turn % 50 == 0:
                # There at one look and gone at the next, or when all is frozen.
                if passing:
                    passing.close()
                    passing = None
                else:
                    passing = private(3 * MIB)
                    passing[::PAGE] = bytes([1]) * (len(passing) // PAGE)
                time.sleep(0.005)
        stopped.set()

    threading.Thread(target=write).start()
    print("ready", flush=True)
    while not asked.wait(0.1):
        pass
    stopped.wait()
    protect(made[7], mmap.PROT_READ | mmap.PROT_WRITE)
    wrong = [found for area in made + inherited if (found := area.wrong())]
    for found in wrong:
        print(os.getpid(), found, flush=True)
    return not wrong


family = Area("family", private(8 * MIB), 1000)
children = []
for number in (1, 2):
    child = os.fork()
    if child == 0:
        sys.exit(0 if live(100 * number, [family]) else 1)
    children.append(child)
good = live(7, [family])
for child in children:
    os.kill(child, signal.SIGUSR1)
    good &= os.waitpid(child, 0)[1] == 0
print("same" if good else "different", flush=True)
sys.exit(0 if good else 1)
