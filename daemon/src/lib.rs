//! Live migration of containers off spot machines: the daemon and its command line.
//!
//! The rooms: [`notice`] hears that the host will be taken away, [`notification`] tells others what becomes of it, [`orchestrator`] speaks to the container engine,
//! [`files`] moves filesystems, [`migration`] is the saga and its commit protocol, [`journal`] its memory, [`api`] how
//! people and programs reach all that. [`parking`] is a migration to an object store and back. [`provider`] asks the cloud whether another host is gone.

pub mod api;
pub mod capacity;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod doctor;
pub mod files;
mod hex;
mod https;
pub mod inventory;
pub mod journal;
pub mod migration;
pub mod notice;
pub mod notification;
pub mod orchestrator;
pub mod parking;
pub mod provider;
mod secret;
pub mod setup;
mod standard_webhooks;
