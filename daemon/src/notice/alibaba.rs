//! Alibaba Cloud ECS: the release of a preemptible instance, from the metadata service.
//!
//! From the ECS documentation, "Instance metadata": the service is at 100.100.100.200; in security hardening mode, which any
//! instance allows and some require (403 without a token), a session token is had by `PUT /latest/api/token` with
//! `X-aliyun-ecs-metadata-token-ttl-seconds` and sent as `X-aliyun-ecs-metadata-token`. From "Query the interruption events of preemptible
//! instances": `instance/spot/termination-time` is absent (or empty) until the instance is to be reclaimed, and then reads
//! `2015-01-05T18:02:00Z`, in UTC, some five minutes ahead. Whether the instance is released or, in economical mode, stopped is not told.

use jiff::Timestamp;

use super::Cloud;
use super::detect::Probe;
use super::metadata::{Dialect, TokenDialect};
use super::termination::Place;

/// Alibaba's metadata service.
const DIALECT: Dialect = Dialect {
    service: "Alibaba Cloud",
    request: None,
    answer: None,
    tokens: Some(TokenDialect {
        path: "latest/api/token",
        ttl_header: "X-aliyun-ecs-metadata-token-ttl-seconds",
        token_header: "X-aliyun-ecs-metadata-token",
    }),
};
const INSTANCE_ID: &str = "latest/meta-data/instance-id";

/// By its address, its token and its id.
pub(super) static PROBE: Probe =
    Probe { dialect: &DIALECT, path: INSTANCE_ID, query: &[], is_it: |body| body.trim().starts_with("i-") };

/// Where the time is, and how it is written.
pub(super) static PLACE: Place = Place {
    cloud: Cloud::Alibaba,
    name: "alibaba",
    dialect: &DIALECT,
    instance_id: INSTANCE_ID,
    termination_time: "latest/meta-data/instance/spot/termination-time",
    parse: |text| text.parse::<Timestamp>().map_err(|error| error.to_string()),
};
