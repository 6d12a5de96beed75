//! TCP settings.

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// What every connection gets: no delay, and keepalive probes that notice a peer that vanished while nothing is under way.
pub(crate) fn prepare(stream: &TcpStream, peer_timeout: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    // The first probe after a third of the time and then every sixth: four of them fit. The kernel counts in whole seconds.
    let seconds = |part: u64| Duration::from_secs((peer_timeout.as_secs() / part).max(1));
    let keepalive = TcpKeepalive::new().with_time(seconds(3)).with_interval(seconds(6)).with_retries(4);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// What control connections get besides: the connection is lost when the peer's kernel has answered nothing for so long.
///
/// Not for data connections: there TCP_USER_TIMEOUT would also strike a peer that is alive and merely reads slowly (the kernel counts the
/// time during which the receive window is shut). A transfer notices a vanished peer by its session's control connection.
pub(crate) fn limit_silence(stream: &TcpStream, peer_timeout: Duration) -> io::Result<()> {
    SockRef::from(stream).set_tcp_user_timeout(Some(peer_timeout))
}
