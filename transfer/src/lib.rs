//! Moves bytes between two hosts: TLS, framing, chunks, compression.
//!
//! One [`session::Session`] is one conversation between two spothop daemons: a control connection that carries the
//! application's own messages, and some data connections beside it that carry bulk in parallel. All of them are TLS 1.3
//! with certificates on both sides ([`tls::Identity`]), made by a small authority of one's own ([`certs`]).
//!
//! The crate does not know what the bytes mean. It promises that they arrive complete and unchanged, or that both sides
//! get an [`Error`] with the first cause, in bounded memory and without touching a disk that the caller did not name.
//!
//! ```no_run
//! use spothop_transfer::{bulk::Limits, session, tls::Identity};
//! use std::path::Path;
//!
//! # async fn source() -> Result<(), Box<dyn std::error::Error>> {
//! let identity = Identity::load(Path::new("/etc/spothop/tls"))?;
//! let mut session = session::connect("10.0.0.2:7077", "b", &identity, 4).await?;
//! session.send(b"here come two files").await?;
//! session.send_files(Path::new("/run/images"), &["core-1.img".into(), "pages-1.img".into()], &|_| {}).await?;
//! session.close().await?;
//! # Ok(())
//! # }
//! # async fn target() -> Result<(), Box<dyn std::error::Error>> {
//! let identity = Identity::load(Path::new("/etc/spothop/tls"))?;
//! let mut listener = session::Listener::bind("0.0.0.0:7077", &identity).await?;
//! let mut session = listener.accept().await;
//! let message = session.recv().await?;
//! session.receive_files(Path::new("/run/images"), &Limits::bytes(8 << 30), &|_| {}).await?;
//! # Ok(())
//! # }
//! ```

pub mod bulk;
pub mod certs;
mod codec;
pub mod credentials;
pub mod error;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod link;
pub mod session;
mod socket;
#[cfg(test)]
mod testing;
pub mod tls;
pub mod version;
mod wire;

pub use bulk::{Extent, ExtentSink, ExtentSource, Limits, Stats};
pub use credentials::Credentials;
pub use error::Error;
pub use session::{Listener, Options, Session, connect, connect_with};
pub use tls::Identity;
