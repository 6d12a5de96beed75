//! TCP settings.

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::BufReader;
use tokio::net::TcpStream;

/// Bytes taken from the kernel at a time. rustls by itself asks for one record (16 KiB), and every such small read costs a system call and
/// an acknowledgement.
const READ_AHEAD: usize = 256 << 10;

/// A TCP connection as TLS gets it.
pub(crate) type Tcp = BufReader<TcpStream>;

/// Lets TLS read a connection in large pieces.
pub(crate) fn buffered(stream: TcpStream) -> Tcp {
    BufReader::with_capacity(READ_AHEAD, stream)
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn the_kernel_has_the_settings() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let timeout = Duration::from_secs(6);
        prepare(&stream, timeout).unwrap();
        limit_silence(&stream, timeout).unwrap();
        let socket = SockRef::from(&stream);
        assert!(stream.nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(2));
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(1));
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 4);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(timeout));
    }
}
