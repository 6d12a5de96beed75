//! The testbed: hosts on one machine, each with namespaces, root, address, systemd, Docker, metadata service and spothop of its own.
//! End-to-end tests, the demo and the benchmarks stand on it, and anyone can script against its command line (`cargo testbed`).
//!
//! What is where: [`testbed`] is the whole; [`host`] one machine (namespaces, root, process 1); [`switch`] the network between
//! them; [`cgroup`] how all of it is found and ended again; [`imds`] the metadata service; [`base`] the Debian root below all
//! hosts; [`moto`] an imitation of AWS, [`autoscaling`] of what it lacks; [`older_kernel`] a virtual machine for unit tests; [`product`] spothop on them; [`image`] and [`workload`] container images; [`redis`] a live client, [`scenario`] it and a
//! server; [`events`] what the daemon tells; [`torture`] faults of all kinds, and a checker that believes nobody; [`soak`] many moves in a row; [`state`] and [`layout`] what is kept where.

pub mod autoscaling;
pub mod base;
pub mod bench;
pub mod cgroup;
pub mod cli;
pub mod command;
pub mod demo;
mod error;
pub mod etcd;
pub mod events;
pub mod host;
pub mod image;
pub mod imds;
pub mod layout;
pub mod machine;
pub mod moto;
pub mod older_kernel;
pub mod product;
pub mod redis;
pub mod scenario;
pub mod soak;
pub mod state;
pub mod switch;
pub mod test_all;
pub mod testbed;
pub mod torture;
pub mod workload;

pub use error::{Error, Result};
