import os, shutil, sys
capability = bytes.fromhex("01000002002000000000000000000000" "00000000")
for top in sys.argv[1:]:
    os.makedirs(top)
    os.chdir(top)
    os.mkdir("empty", 0o700)
    with open("plain", "wb") as f: f.write(os.urandom(300_000))
    os.chown("plain", 1234, 5678)
    os.chmod("plain", 0o640)
    os.utime("plain", ns=(1_111_111_111_111_111_111, 1_222_222_222_222_222_222))
    os.link("plain", "twin")
    os.symlink("/nowhere/at all", "dangling")
    os.symlink("plain", "relative")
    os.lchown("relative", 42, 43)
    with open("setuid", "wb") as f: f.write(b"x")
    os.chown("setuid", 7, 7)
    os.chmod("setuid", 0o4755)
    os.setxattr("setuid", "user.colour", b"blue\0green")
    os.setxattr("setuid", "security.capability", capability)
    os.setxattr("empty", "user.note", b"a directory")
    with open("sparse", "wb") as f:
        f.seek(40_000_000); f.write(b"middle"); f.truncate(80_000_000)
    os.mkfifo("fifo", 0o620)
    os.mkdir("sticky"); os.chmod("sticky", 0o3777)
    for name in ["new\nline", "ünï", b"not\xffutf8", "n" * 200, " "]:
        with open(name, "wb") as f: f.write(b"name")
    deep = "/".join(["d" * 60] * 8)
    os.makedirs(deep)
    with open(deep + "/file", "w") as f: f.write("deep")
python = "/usr/lib/python3.13"
os.unlink("/usr/bin/env")                       # a file of the image goes
shutil.rmtree(python + "/tomllib")              # a directory of the image goes
shutil.rmtree(python + "/wsgiref")              # another is replaced, by one without its old files
os.mkdir(python + "/wsgiref")
with open(python + "/wsgiref/new", "w") as f: f.write("new")
shutil.rmtree(python + "/xmlrpc")               # by a file
with open(python + "/xmlrpc", "w") as f: f.write("a file")
with open(python + "/this.py", "a") as f: f.write("# changed\n")
os.chmod(python + "/antigravity.py", 0o600)
