//! Writes seeds into `seeds/<target>`: what honest peers, engines and runtimes say, by the real encoders.

use std::fs;
use std::path::Path;

use serde_json::json;
use spothop::files::{Tree, TreeName};
use spothop_criu::memory;
use spothop_fuzz::{Room, block_on};
use spothop_transfer::fuzzing::{self, Chunk};
use tokio::io::AsyncReadExt;

const ID: &str = "0191e0a0-0000-7000-8000-000000000001";

fn main() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    let write = |target: &str, name: &str, which: u8, bytes: &[u8]| {
        fs::create_dir_all(seeds.join(target)).unwrap();
        fs::write(seeds.join(target).join(name), [&[which], bytes].concat()).unwrap();
    };

    let finish = json!({ "type": "finish", "transfer": 1, "raw_bytes": 5, "digests": [fuzzing::digest(&[(1, 5)])] });
    let frames = block_on(async {
        let message = fuzzing::frame(1, b"hello").await;
        let transfer = fuzzing::frame(2, finish.to_string().as_bytes()).await;
        [message, transfer, fuzzing::frame(3, b"").await].concat()
    });
    write("wire", "frames", 0, &frames);
    let about = |encoding, raw_length, stored_length, checksum| Chunk {
        encoding,
        transfer: 1,
        object: 0,
        offset: 0,
        raw_length,
        stored_length,
        checksum,
    };
    let chunks = [
        fuzzing::chunk(about(0, 5, None, None), b"hello"),
        fuzzing::chunk(about(2, 65_536, Some(0), Some(0)), b""),
        fuzzing::chunk(about(3, 0, Some(0), Some(0)), b""),
    ];
    write("wire", "chunks", 1, &chunks.concat());
    let hello = b"SPOTHOP\n\x01\0\x01\0\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let welcome = b"SPOTHOP\n\0\0\x01\0\x01\0\x01\x000123456789abcdef";
    write("wire", "hello", 2, hello);
    write("wire", "welcome", 2, welcome);
    write("wire", "greeting", 3, hello);
    write("wire", "message", 4, b"\x01hello");

    // Read as root, as the daemon does.
    let room = Room::new();
    let tree = vec![Tree { name: TreeName::Rootfs, directory: room.outside() }];
    let (mut bytes, snapshot) = (Vec::new(), block_on(async { read(spothop::files::archive(tree.clone())).await }));
    bytes.extend(snapshot.0);
    write("archive", "full", 0, &bytes);
    fs::remove_file(room.outside().join("file")).unwrap();
    fs::write(room.outside().join("new"), "new").unwrap();
    let difference = block_on(async { read(spothop::files::difference(tree, snapshot.1)).await });
    write("archive", "difference", 0, &difference.0);
    write("archive", "mounted", 2, &difference.0);

    let images = images();
    write("images", "real-lazy", 0, &images);
    write("images", "real-eager", 2, &images);
    for (name, which) in [("real-lazy", 0), ("real-eager", 2)] {
        write("owed", name, which, &owed());
    }

    let recipe = json!({
        "name": "redis", "restart_policy": { "name": "always" }, "network": { "mode": "none", "attachments": [] },
        "image": { "id": "sha256:1", "reference": "redis:7", "architecture": "amd64", "os": "linux" },
        "engine": { "engine": "docker", "config": { "Env": ["A=b"] }, "host_config": {}, "endpoints": [] },
    });
    let offer = json!({ "migration": ID, "cause": "manual", "deadline": null, "recipe": recipe, "memory_bytes": 4096 });
    let mut request = offer.clone();
    request["request"] = "offer".into();
    let requests = [
        ("offer", request),
        ("probe", json!({ "request": "probe", "cpuinfo": "00ff", "images": [] })),
        ("image", json!({ "request": "image", "shipped": true })),
        ("images", json!({ "request": "images", "bytes": 4096 })),
        ("decided", json!({ "request": "decided", "migration": ID, "verdict": "abort", "reason": "why" })),
        ("ask", json!({ "request": "ask", "migration": ID })),
    ];
    for (name, text) in requests {
        serde_json::from_value::<spothop::migration::message::Request>(text.clone()).unwrap();
        write("messages", name, 0, text.to_string().as_bytes());
    }
    for (name, text) in [
        ("verdict", json!({ "answer": "verdict", "verdict": "commit" })),
        ("failed", json!({ "answer": "failed", "reason": "why" })),
        ("done", json!({ "answer": "done" })),
    ] {
        serde_json::from_value::<spothop::migration::message::Answer>(text.clone()).unwrap();
        write("messages", name, 1, text.to_string().as_bytes());
    }
    let ticket = json!({ "migration": ID, "journal": "/var/lib/spothop/journal.db", "reset_connections": false });
    write("messages", "ticket", 2, ticket.to_string().as_bytes());
    let step = json!({ "step": "create", "offer": offer });
    serde_json::from_value::<spothop::migration::Step>(step.clone()).unwrap();
    write("messages", "step", 3, step.to_string().as_bytes());
    write("messages", "phase", 4, b"pre-copy(7)");
    let container = json!({
        "Id": "c0ffee", "Name": "/redis", "State": { "Running": true, "Pid": 7 }, "Config": { "Env": ["A=b"], "Labels": {} },
        "HostConfig": { "NetworkMode": "bridge", "RestartPolicy": { "Name": "always" } },
        "GraphDriver": { "Name": "overlay2", "Data": { "UpperDir": "/u", "MergedDir": "/m" } },
        "Mounts": [{ "Type": "volume", "Name": "v", "Source": "/s", "Destination": "/d", "RW": true }],
        "NetworkSettings": { "Networks": { "bridge": { "IPAddress": "172.17.0.2" } } },
    });
    let volume =
        json!({ "Name": "v", "Driver": "local", "Mountpoint": "/s", "Labels": {}, "Scope": "local", "Options": {} });
    let docker = format!("{container}\n{{\"Os\":\"linux\",\"Architecture\":\"amd64\"}}\n{volume}");
    write("messages", "docker", 5, docker.as_bytes());

    write("runtime", "command-line", 0, b"--root\0/run/docker\0--log-format=json\0create\0--bundle\0/b\0c");
    let bundle = json!({
        "annotations": { "io.spothop.migration": ID }, "mounts": [{ "type": "bind", "source": "/etc", "options": ["rbind"] }],
        "linux": { "namespaces": [{ "type": "network" }], "sysctl": { "net.core.somaxconn": "9" } },
    });
    write("runtime", "bundle", 1, bundle.to_string().as_bytes());
    write("runtime", "environment", 2, b"post-dump\n77\n/proc/7/fd/3");
    write("runtime", "held", 3, b"held 77\n");
    write("runtime", "log", 4, b"{\"level\":\"error\",\"msg\":\"criu failed\"}\n");
    write(
        "runtime",
        "criu-log",
        5,
        b"(00.012345) Error (criu/sk-inet.c:188): inet: Connected TCP socket, consider using --tcp-established\n",
    );
    write("runtime", "report", 6, b"{\"say\":\"waiting\",\"container_id\":\"c\",\"pid\":7}\n");
    write("runtime", "verdict", 6, b"{\"say\":\"abort\",\"reason\":\"x\"}\n");
    write("runtime", "id", 7, ID.as_bytes());
}

async fn read(mut stream: spothop::files::ArchiveStream) -> (Vec<u8>, std::sync::Arc<spothop::files::Snapshot>) {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    (bytes, stream.finish().await.unwrap().0)
}

/// All that can be owed of the real images that the tests of `spothop-criu` read, as it is sent.
fn owed() -> Vec<u8> {
    let room = Room::new();
    let images = room.inside();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../criu/tests/images");
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), images.join(entry.file_name())).unwrap();
        let name = entry.file_name().into_string().unwrap();
        let Some(vpid) = name.strip_prefix("pagemap-").and_then(|rest| rest.strip_suffix(".img")) else { continue };
        let (id, runs) = memory::fuzzing::runs(entry.path().parent().unwrap(), vpid.parse().unwrap()).unwrap();
        let dumped = runs.into_iter().filter(|(_, flags)| flags & memory::fuzzing::FLAGS[2] != 0);
        let pages = fs::File::create(images.join(format!("pages-{id}.img"))).unwrap();
        pages.set_len(dumped.map(|(range, _)| range.end - range.start).sum()).unwrap();
    }
    memory::write_owed(images, &memory::can_be_owed(images).unwrap()).unwrap();
    fs::read(images.join("owed.img")).unwrap()
}

/// The real images that the tests of `spothop-criu` read, as the target `images` takes them apart.
fn images() -> Vec<u8> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../criu/tests/images");
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<_> = fs::read_dir(&directory).unwrap().map(name).collect();
    names.sort();
    let mut packed = Vec::new();
    let mut add = |kind: usize, number: u32, bytes: &[u8]| {
        packed.extend([kind as u8, number as u8]);
        packed.extend((bytes.len() as u16).to_le_bytes());
        packed.extend(bytes);
    };
    for name in names {
        let stem = name.strip_suffix(".img").unwrap();
        let (kind, number) = stem.split_once('-').unwrap_or((stem, "0"));
        let kind = ["pstree", "pagemap", "mm", "core"].iter().position(|known| *known == kind).unwrap();
        let number: u32 = number.parse().unwrap();
        add(kind, number, &fs::read(directory.join(&name)).unwrap());
        if kind == 1 {
            let (id, runs) = memory::fuzzing::runs(&directory, number.cast_signed()).unwrap();
            let present = runs.iter().filter(|(_, flags)| flags & memory::fuzzing::FLAGS[2] != 0);
            let dumped: u64 = present.map(|(range, _)| range.end - range.start).sum();
            // Its pages, which are more than zeros.
            add(4, id, &[&dumped.to_le_bytes()[..], &[1]].concat());
        }
    }
    packed
}
