import os

for name in ["limits", "oom_score_adj", "environ", "cmdline"]:
    print(name, open(f"/proc/1/{name}").read())
for line in open("/proc/1/status"):
    if line.split(":")[0] in ["Umask", "Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"]:
        print(line.strip())
for line in sorted(open("/proc/1/mounts"), key=lambda line: line.split()[1]):
    device, place, kind, options = line.split()[:4]
    # Where the layers of the root are is the engine's affair; what covers a file of /proc is one empty file or another.
    options = [option for option in options.split(",") if not option.startswith(("lowerdir=", "upperdir=", "workdir="))]
    print(place, *([] if place.startswith("/proc/") else [kind, sorted(options)]))
for name in ["core/somaxconn", "ipv4/ip_local_port_range", "ipv4/ip_unprivileged_port_start", "ipv4/ping_group_range"]:
    print(name, open(f"/proc/sys/net/{name}").read().split())
print(os.sched_getaffinity(1), os.uname().nodename)
