//! Telling switches where an address is, after an abort.
//!
//! The target's engine announces the container's address as soon as it has plugged its network in (Docker: up to three
//! gratuitous ARPs, a second apart), which is before COMMIT. If the migration is aborted then, switches send the container's
//! packets to the target's port until they see a packet from the source again. A server that only answers never sends one.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::thread::{sleep, spawn};
use std::time::Duration;

use super::{NetnsError, of_pid, within};

/// When to say it, counted from the one before: longer than an engine goes on announcing.
const AGAIN: [Duration; 6] = [
    Duration::ZERO,
    Duration::from_millis(250),
    Duration::from_millis(750),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
];

/// The discard service (RFC 863): nobody answers.
const DISCARD: u16 = 9;

/// Sends a packet to everybody on each network of `pid`, now and for a few seconds more, in the background. Best effort: any packet
/// of the container's own does the same.
pub fn announce(pid: i32) {
    spawn(move || {
        for pause in AGAIN {
            sleep(pause);
            if within(&of_pid(pid), || {
                to_everybody();
                Ok::<_, NetnsError>(())
            })
            .is_err()
            {
                return;
            }
        }
    });
}

fn to_everybody() {
    let Ok(interfaces) = nix::net::if_::if_nameindex() else { return };
    for interface in &interfaces {
        let everybody = SocketAddrV6::new(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1), DISCARD, 0, interface.index());
        // Whichever family the interface has; without one there is nothing to announce.
        let _ = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).and_then(|socket| socket.send_to(&[], everybody));
    }
    let everybody = SocketAddr::from((Ipv4Addr::BROADCAST, DISCARD));
    let _ = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| {
        socket.set_broadcast(true)?;
        socket.send_to(&[], everybody)
    });
}
