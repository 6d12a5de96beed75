import os, random, shutil, signal, sys
stop = False
def end(*_):
    global stop
    stop = True
signal.signal(signal.SIGUSR1, end)
random.seed(1)
tops = sys.argv[1:]
python = "/usr/lib/python3.13"
known = {}                      # directory -> {name: bytes}
for top in tops:
    os.makedirs(top, exist_ok=True)
for name in ["wsgiref", "xmlrpc", "tomllib", "dbm", "curses"]:      # directories of the image
    path = f"{python}/{name}"
    if os.path.isdir(path):
        known[path] = {n: open(f"{path}/{n}", "rb").read() for n in os.listdir(path) if os.path.isfile(f"{path}/{n}")}
        shutil.rmtree(f"{path}/__pycache__", ignore_errors=True)
places = [f"{top}/d{i}" for top in tops for i in range(6)] + list(known)
log, lines = open(tops[0] + "/log", "a+"), 0                        # kept open, appended to
ghost, written = open(tops[0] + "/ghost", "wb+"), bytearray()       # kept open, deleted
os.unlink(tops[0] + "/ghost")
def fresh():
    return random.randbytes(random.randrange(20_000))
step = 0
while not stop:
    place = random.choice(places)
    if place not in known:
        os.mkdir(place)
        known[place] = {}
    files = known[place]
    name = random.choice(sorted(files)) if files and random.random() < .5 else f"f{random.randrange(20)}"
    action = random.random()
    if action < .4:
        files[name] = fresh()
        with open(f"{place}/{name}", "wb") as f: f.write(files[name])
    elif action < .55:
        more = fresh()[:500]
        files[name] = files.get(name, b"") + more
        with open(f"{place}/{name}", "ab") as f: f.write(more)
    elif action < .75:
        if files.pop(name, None) is not None: os.unlink(f"{place}/{name}")
    elif action < .9:
        # Not from one mount to another.
        other = random.choice([o for o in known if o.rpartition("/")[0] == place.rpartition("/")[0]])
        if name in files:
            known[other][name] = files.pop(name) if other != place else files[name]
            os.rename(f"{place}/{name}", f"{other}/{name}")
    elif action < .93:
        shutil.rmtree(place)
        del known[place]
    elif action < .96:
        shutil.rmtree(place)
        os.mkdir(place)
        known[place] = {"again": fresh()}
        with open(f"{place}/again", "wb") as f: f.write(known[place]["again"])
    log.write(f"{lines}\n"); log.flush(); lines += 1
    if len(written) < 500_000:
        piece = fresh()[:100]
        ghost.write(piece); ghost.flush(); written += piece
    step += 1
    if step % 500 == 0: print("step", step, flush=True)
wrong = []
for place in places:
    if os.path.isdir(place) != (place in known): wrong.append(f"directory {place}")
    if not os.path.isdir(place): continue
    there = set(os.listdir(place))
    expected = known.get(place, {})
    for name in there ^ set(expected): wrong.append(f"{place}/{name} there: {name in there}")
    for name in there & set(expected):
        if open(f"{place}/{name}", "rb").read() != expected[name]: wrong.append(f"content of {place}/{name}")
if open(tops[0] + "/log").read().split() != [str(i) for i in range(lines)]: wrong.append("the log")
ghost.seek(0)
if ghost.read() != bytes(written): wrong.append("the deleted file")
print("end", step, wrong, flush=True)
sys.exit(1 if wrong else 0)
